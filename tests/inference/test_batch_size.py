from pathlib import Path

import numpy as np
import pytest
import torch

from segkit.data import DataError
from segkit.errors import MachineError, NotFiniteError, UsageError
from segkit.inference import BatchSize, Predictor, SourceImage, segment
from segkit.models import create_model
from segkit.models.preprocessing import Preprocessing
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import TrainingScale
from segkit.tta import TTA

NAMES = ("background", "b", "c")


class ByColour(torch.nn.Module):
    """Predicts each pixel by its colour; a pixel with the first value 255 is NaN. Keeps the shapes of its inputs."""

    class_names = NAMES
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return images.where(images[:, :1] < 1, torch.nan)


class TooSmall(ByColour):
    """Stands for a GPU whose memory holds so many images."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, images):
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return super().forward(images)

    @property
    def batches(self):
        return [shape[0] for shape in self.shapes]


def image(seed, size=(5, 7), broken=False):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    pixels[0, 0, 0] = 255 if broken else 0
    return pixels


def source(number, size=(5, 7), kind="good"):
    def read():
        if kind == "damaged":
            raise DataError(f"{number}.png is damaged")
        return image(number, size, kind == "broken")

    return SourceImage(Path(f"{number}.png"), read)


def run(sources, predictor, batch_size):
    return list(segment(sources, predictor, batch_size=BatchSize(predictor, batch_size)))


def assert_same(found, predictor, labels=1.0):
    """Assert that every image has its own prediction, as it has alone."""
    for one in found:
        alone = predictor(one.source.read())
        assert (one.prediction.mask == alone.mask).mean() >= labels
        np.testing.assert_allclose(one.prediction.probs, alone.probs, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_images_of_one_size_run_as_one_batch_and_come_in_order(batch_size):
    predictor = Predictor(ByColour())
    found = run([source(i) for i in range(10)], predictor, batch_size)
    assert [one.source.name.stem for one in found] == [str(i) for i in range(10)]
    rest = [10 % batch_size] * (10 % batch_size > 0)
    assert [shape[0] for shape in predictor.members[0].shapes] == [batch_size] * (10 // batch_size) + rest
    assert_same(found, predictor)


def test_neighbours_of_other_sizes_share_no_batch_and_keep_their_places():
    sizes = [(5, 7), (7, 5), (5, 7), (5, 7), (7, 5), (6, 6), (5, 7)]
    predictor = Predictor(ByColour())
    found = run([source(i, size) for i, size in enumerate(sizes)], predictor, 4)
    assert [one.prediction.mask.shape for one in found] == sizes
    shapes = [(shape[0], shape[2:]) for shape in predictor.members[0].shapes]
    assert shapes == [(3, (5, 7)), (1, (7, 5)), (1, (7, 5)), (1, (6, 6)), (1, (5, 7))]
    assert_same(found, predictor)


@pytest.mark.parametrize("kind", ["damaged", "broken"])
@pytest.mark.parametrize("bad", [(0,), (1, 2), (5,), (0, 1, 2, 3, 4, 5)])
def test_an_image_without_a_prediction_loses_or_moves_no_other_of_its_batch(kind, bad):
    kinds = [kind if i in bad else "good" for i in range(6)]
    predictor = Predictor(ByColour())
    found = run([source(i, kind=k) for i, k in enumerate(kinds)], predictor, 4)
    assert [one.source.name.stem for one in found] == [str(i) for i in range(6)]
    assert [i for i, one in enumerate(found) if one.prediction is None] == list(bad)
    for i in bad:
        assert isinstance(found[i].error, DataError if kind == "damaged" else NotFiniteError)
        assert str(found[i].error).startswith(f"{i}.png")
    assert_same([one for one in found if one.error is None], predictor)


def test_an_image_too_large_for_the_crf_fails_and_its_batch_runs():
    def crf(probs, image):
        return probs.flip(0)

    crf.max_pixels = 36
    predictor = Predictor(ByColour(), crf=crf)
    found = run([source(0), source(1), source(2, (6, 7)), source(3)], predictor, 4)
    assert [one.error is None for one in found] == [True, True, False, True]
    assert [shape[0] for shape in predictor.members[0].shapes] == [3]
    assert_same([one for one in found if one.error is None], predictor)


def test_a_batch_for_which_the_memory_is_too_small_is_halved_until_it_suffices(caplog):
    predictor = Predictor(TooSmall(2))
    found = run([source(i) for i in range(13)], predictor, 8)
    assert predictor.members[0].batches == [2, 2, 2, 2, 2, 2, 1]
    assert [one.source.name.stem for one in found] == [str(i) for i in range(13)]
    assert_same(found, predictor)
    assert "a batch of 8 images of 5 x 7 pixels; continuing with 4" in caplog.text
    assert caplog.text.count("continuing with 2") == 1  # not tried again for each batch
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run([source(0)], Predictor(TooSmall(0)), 8)


def test_after_the_memory_was_too_small_larger_images_run_in_smaller_batches():
    batch_size = BatchSize(Predictor(TooSmall(4)), 8)
    batch_size.run([image(i) for i in range(8)])
    assert [batch_size.of(5, 7), batch_size.of(10, 7), batch_size.of(70, 70), batch_size.of(1, 1)] == [4, 2, 1, 8]


def test_images_are_neither_gathered_from_the_whole_source_nor_kept():
    read = []

    def counted(number):
        def pixels():
            read.append(number)
            if number % 3:
                raise DataError("damaged")
            return image(number, (5 + number % 2, 7))

        return SourceImage(Path(f"{number}.png"), pixels)

    predictor, most = Predictor(ByColour()), 0
    for number, _ in enumerate(segment(map(counted, range(200)), predictor, None, BatchSize(predictor, 4)), start=1):
        most = max(most, len(read) - number)
    assert number == 200
    assert most <= 4 + 4 + 4 + 2  # a batch, as many read ahead, and those of the readers


def test_the_image_after_a_full_batch_is_not_waited_for():
    def endless():
        yield from map(source, range(4))
        while True:  # as many as are read ahead; then the batch must come
            yield source(4)

    predictor = Predictor(ByColour())
    assert next(segment(endless(), predictor, None, BatchSize(predictor, 4))).source.name.stem == "0"


def test_images_before_one_that_stops_the_stream_are_predicted():
    def unreadable():
        raise MachineError("too many open files")

    predictor, found = Predictor(ByColour()), []
    sources = [source(0), source(1), SourceImage(Path("2.png"), unreadable), source(3)]
    with pytest.raises(MachineError, match="too many open files"):
        found.extend(segment(sources, predictor, None, BatchSize(predictor, 4)))
    assert [one.source.name.stem for one in found] == ["0", "1"]
    assert_same(found, predictor)


def test_windows_keep_their_own_batches():
    predictor = Predictor(ByColour(), window=SlidingWindow(16, batch_size=2))
    found = run([source(i, (20, 40)) for i in range(3)] + [source(i, (16, 16)) for i in range(3, 6)], predictor, 3)
    shapes = predictor.members[0].shapes
    assert {shape for shape in shapes[:-1]} <= {(2, 3, 16, 16), (1, 3, 16, 16)}
    assert shapes[-1] == (3, 3, 16, 16)
    assert_same(found, predictor)


@pytest.fixture(scope="module")
def members():
    torch.manual_seed(0)
    options = {"pyramid_channels": 16, "channels": 16, "pretrained": False}
    models = [create_model("fpn", backbone="test_resnet", class_names=NAMES, **options) for _ in range(2)]
    models[1].training_scale = TrainingScale(size=(28, 28))
    for model in models:
        torch.nn.init.normal_(model.head.weight, std=1)
    return [model.eval() for model in models]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tta": TTA(scales=(0.75, 1.0), flips="d4"), "member_weights": (2, 1)},
        {"tta": TTA(flips="v", merge="vote"), "class_bias": {"b": 0.5}},
        {"tta": TTA(scales=(0.5, 1.0), merge="logits-sum", resize="nearest", brightness=(0.9, 1.0)), "full_size": True},
        {"tta": TTA(merge="max", multiple=32, fit="pad"), "probs": "disk", "crf": lambda probs, image: probs.flip(0)},
    ],
)
def test_masks_of_batches_are_the_masks_of_single_images(members, options):
    predictor = Predictor(members, **options)
    found = run([source(i, (24, 31)) for i in range(3)] + [source(3, (31, 24))], predictor, 4)
    assert len(found) == 4
    assert_same(found, predictor, labels=0.999)


def test_an_explicit_number_holds_on_every_device_and_auto_takes_several_small_images_on_a_cpu():
    predictor = Predictor(ByColour())
    assert BatchSize(predictor, 6).of(4000, 3000) == 6
    auto = BatchSize(predictor)
    assert [auto.of(512, 512), auto.of(256, 256), auto.of(128, 128), auto.of(64, 64)] == [1, 1, 4, 16]
    assert auto.largest == 16
    with_scales = BatchSize(Predictor(ByColour(), tta=TTA(scales=(1.0, 2.0))))
    assert with_scales.of(64, 64) == 4
    assert BatchSize(Predictor(ByColour(), window=SlidingWindow(32))).of(64, 64) == 1


def test_auto_fills_the_free_memory_of_a_gpu_up_to_the_largest_batch_of_the_views(monkeypatch):
    predictor = Predictor(ByColour(), tta=TTA(scales=(0.75, 1.0, 1.25), flips="v"))
    predictor.device = torch.device("cuda")
    for name, value in {"mem_get_info": (70e9, 80e9), "memory_reserved": 5e9, "memory_allocated": 1e9}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert BatchSize(predictor).of(512, 512) == 10  # of 640 x 640 pixels, 4 million together
    assert BatchSize(predictor).of(3000, 4000) == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6e9, 8e9))
    assert BatchSize(predictor).of(512, 512) == 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 8e9))
    assert BatchSize(predictor).of(512, 512) == 1


def test_a_compiled_model_gets_batches_of_one_size_only():
    model = ByColour()
    model.compiled = True
    predictor = Predictor(model)
    found = run([source(i) for i in range(5)], predictor, 4)
    assert [shape[0] for shape in model.shapes] == [4, 4]
    assert len(found) == 5
    assert_same(found, predictor)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "all", None])
def test_another_batch_size_is_named(wrong):
    with pytest.raises(UsageError, match=r"`batch_size` must be a whole number of at least 1 or 'auto'"):
        BatchSize(Predictor(ByColour()), wrong)
