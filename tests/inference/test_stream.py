import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from segkit.data import DataError
from segkit.errors import NotFiniteError
from segkit.inference import Clock, Predictor, SourceImage, segment
from segkit.inference.stream import ahead
from segkit.models.preprocessing import Preprocessing


class ByColour(torch.nn.Module):
    class_names = ("background", "b", "c")
    preprocessing = Preprocessing()

    def forward(self, images):
        return images * 3


class Counted(ByColour):
    calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


class Counter:
    """Makes images, and counts how many of them were read."""

    def __init__(self):
        self.read = 0

    def image(self, name, size=(5, 7)):
        def read():
            self.read += 1
            if "bad" in name:
                raise DataError(f"{name} is damaged")
            return np.random.default_rng(int(Path(name).stem)).integers(0, 256, (*size, 3), dtype=np.uint8)

        return SourceImage(Path(name), read)


class Refine:
    """A CRF that reverses the order of the classes, with futures that are done when they are awaited."""

    def __init__(self, workers):
        self.workers = workers
        self.open = self.most = 0

    def __call__(self, probs, image):
        return probs.flip(0)

    def submit(self, probs, image):
        self.open += 1
        self.most = max(self.most, self.open)
        outer = self

        class Lazy(Future):
            def result(self, timeout=None):
                outer.open -= 1
                return probs.flip(0)

        return Lazy()


def images(count, bad=()):
    return [Counter().image(f"bad{i}.png" if i in bad else f"{i}.png") for i in range(count)]


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_predictions_come_in_order_and_equal_single_predictions(workers):
    crf = None if workers is None else Refine(workers)
    predictor = Predictor(ByColour(), crf=crf)
    found = list(segment(images(21), predictor))
    assert [one.source.name.stem for one in found] == [str(i) for i in range(21)]
    for one in found:
        single = predictor(one.source.read())
        assert np.array_equal(one.prediction.mask, single.mask)
        np.testing.assert_allclose(one.prediction.probs, single.probs, atol=1e-6)


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_an_image_that_cannot_be_read_carries_its_error_and_the_others_continue(workers):
    crf = None if workers is None else Refine(workers)
    found = list(segment(images(9, bad=(0, 4, 8)), Predictor(ByColour(), crf=crf)))
    assert [one.error is not None for one in found] == [i in (0, 4, 8) for i in range(9)]
    assert "bad4.png is damaged" in str(found[4].error)
    assert found[4].prediction is None


def test_an_image_too_large_for_the_crf_fails_before_the_models_and_the_others_continue():
    crf = Refine(0)
    crf.max_pixels = 35
    sizes = {"0.png": (5, 7), "1.png": (6, 7), "2.png": (7, 5)}
    model = Counted()
    predictor = Predictor(model, crf=crf)
    found = list(segment([Counter().image(name, size) for name, size in sizes.items()], predictor))
    assert [one.error is None for one in found] == [True, False, True]
    assert "1.png: the image has 6 x 7 pixels (height x width), more than the 35 of a CRF" in str(found[1].error)
    assert found[1].prediction is None
    assert model.calls == 2
    with pytest.raises(DataError, match="more than the 35 of a CRF"):
        predictor(Counter().image("1.png", (6, 7)).read())
    assert model.calls == 2


def test_only_a_few_of_many_images_are_in_memory():
    counter, crf, most = Counter(), Refine(2), 0
    some = (counter.image(f"{i}.png") for i in range(60))
    for number, _ in enumerate(segment(some, Predictor(ByColour(), crf=crf)), start=1):
        most = max(most, counter.read - number)
    assert most < 20
    assert crf.most == 8


def test_reading_happens_while_the_caller_works():
    started = threading.Event()

    def second():
        started.set()
        return np.zeros((5, 7, 3), np.uint8)

    stream = segment([Counter().image("0.png"), SourceImage(Path("1.png"), second)], Predictor(ByColour()))
    next(stream)
    assert started.wait(timeout=10)


def test_the_clock_knows_what_took_longest():
    clock = Clock()
    assert clock.bottleneck() == ""
    clock.seconds.update({"models": 3.0, "reading": 1.0})
    assert clock.bottleneck() == "models"
    assert clock.shares() == "models 75 %, reading 25 %"
    list(segment(images(2), Predictor(ByColour(), crf=Refine(0)), clock))
    assert set(clock.seconds) == {"models", "reading", "CRF"}


def test_an_error_in_a_thread_reaches_the_caller():
    failed: Future = Future()
    failed.set_exception(OSError("no space left"))
    with pytest.raises(OSError, match="no space left"):
        list(ahead([(0, failed)], 4, Clock(), "writing"))


@pytest.mark.parametrize("crf", [None, Refine(0), Refine(2)])
def test_an_image_for_which_the_model_returns_nan_fails_and_the_others_continue(crf):
    class Broken(ByColour):
        def forward(self, images):
            return super().forward(images) * (torch.nan if images.shape[-1] == 9 else 1)

    images = [Counter().image(f"{i}.png", (5, width)) for i, width in enumerate((7, 9, 8))]
    found = list(segment(images, Predictor(Broken(), crf=crf)))
    assert [one.prediction is None for one in found] == [False, True, False]
    assert isinstance(found[1].error, NotFiniteError)
    assert str(found[1].error).startswith("1.png: the model returns values that are not finite")


def test_an_image_for_which_the_crf_returns_nan_fails_and_the_others_continue():
    def refine(probs, image):
        return probs * (torch.nan if image.shape[1] == 9 else 1)

    images = [Counter().image(f"{i}.png", (5, width)) for i, width in enumerate((7, 9, 8))]
    found = list(segment(images, Predictor(ByColour(), crf=refine)))
    assert [str(one.error).partition(" val")[0] for one in found] == ["None", "1.png: the CRF returns", "None"]
