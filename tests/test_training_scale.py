import albumentations as A
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from segkit.data import AUGMENTATIONS, Augmentation, SegmentationDataset, create_transform, train_loader
from segkit.data.transforms import training_scale
from segkit.errors import UsageError
from segkit.inference import MemberProbs, Predictor
from segkit.models import create_model, load_model, optimize, save_model
from segkit.models.model_file import model_bytes
from segkit.models.preprocessing import Preprocessing
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import Resizing, TrainingScale
from segkit.tta import TTA
from segkit.tta.merge import class_logits

SMALL = np.random.default_rng(0).integers(0, 256, (38, 51, 3), dtype=np.uint8)
PHOTO = SMALL.repeat(2, 0).repeat(2, 1)[:75, :101]  # the means of its squares are whole numbers, as Pillow rounds them
HALVED = TrainingScale(decode_at_least=30)


def model(scale=None, seed=0, **options):
    torch.manual_seed(seed)
    options = {"class_names": ("a", "b", "c"), **options}
    created = create_model("fpn", backbone="test_resnet", pyramid_channels=16, channels=16, **options).eval()
    torch.nn.init.normal_(created.head.weight)  # logits far apart
    created.training_scale = scale or TrainingScale()
    return created


def probs_by_hand(created, small, shown):
    """Run a model on an array that was resized by hand; resize the probabilities to `shown`, and cut the photograph."""
    with torch.inference_mode():
        probs = class_logits(created(created.preprocessing(small))).softmax(1)
    probs = F.interpolate(probs, size=shown, mode="bilinear", align_corners=False)
    return probs[0, :, : PHOTO.shape[0], : PHOTO.shape[1]].numpy()


def halved(photo):
    return np.asarray(Image.fromarray(photo).reduce(2))


# The rule of a pipeline


def measured_scale(transform, height, width):
    """Return the median factors of height and width over what a transform makes of coordinates, by its own pixels."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    factors = []
    for seed in range(40):
        steps = []
        for coordinate in (rows, columns):
            transform.set_random_seed(seed)
            shown = transform(image=np.zeros((height, width, 3), np.uint8), mask=coordinate)["mask"]
            along = [np.abs(np.diff(shown, axis=axis)).mean() for axis in (0, 1)]
            steps.append(max(along))  # the image may be turned by 90 degrees
        factors.append([1 / step for step in steps])
    return np.median(factors, axis=0)


@pytest.mark.parametrize(("height", "width"), [(200, 200), (180, 240), (240, 160)])
@pytest.mark.parametrize("name", ["seed1", "seed1-fpn", "seed2"])
def test_the_rule_is_the_scale_of_the_crops_that_the_pipeline_makes(name, height, width):
    transform = create_transform(name, crop=64)
    upright = A.Compose([step for step in transform if isinstance(step, A.Resize | A.RandomResizedCrop)])
    found = training_scale(transform).of(height, width)
    np.testing.assert_allclose(found[1:], measured_scale(upright, height, width), rtol=0.08)
    assert found.reduce == 1


@pytest.mark.parametrize("name", ["none", "flip", "light", "standard"])
def test_crops_at_random_scales_around_the_own_one_are_full_size(name):
    scale = training_scale(create_transform(name, crop=64))
    assert scale.is_full_size
    assert scale.of(900, 1200) == Resizing(1, 1.0, 1.0)


@pytest.mark.parametrize("name", ["seed1", "seed2"])
def test_a_photograph_of_the_size_of_the_crop_keeps_it(name):
    assert training_scale(create_transform(name, crop=512)).of(512, 512) == Resizing(1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("steps", "size", "expected"),
    [
        ([A.Resize(50, 80)], (100, 100), (0.5, 0.8)),
        ([A.SmallestMaxSize(50), A.RandomCrop(50, 50)], (100, 200), (0.5, 0.5)),
        ([A.LongestMaxSize(50), A.PadIfNeeded(50, 50)], (100, 200), (0.25, 0.25)),
        ([A.SmallestMaxSize([40, 90])], (100, 200), (0.6, 0.6)),
        ([A.LongestMaxSize([40, 50, 90])], (100, 200), (0.3, 0.3)),
        ([A.SmallestMaxSize(max_size_hw=(50, 80))], (100, 200), (0.5, 0.5)),
        ([A.LongestMaxSize(max_size_hw=(50, 80))], (100, 200), (0.4, 0.4)),
        ([A.RandomScale((-0.75, -0.5), p=1)], (100, 100), (0.125**0.5, 0.125**0.5)),
        ([A.RandomScale((-0.75, -0.5), p=0.5)], (100, 100), (1, 1)),
        ([A.Affine(scale=0.5, p=1)], (100, 100), (0.5, 0.5)),
        ([A.RandomScale((-0.5, -0.5), p=1), A.Resize(50, 50)], (100, 100), (0.5, 0.5)),
        ([A.Sequential([A.Resize(50, 50)], p=1), A.RandomScale((-0.5, -0.5), p=1)], (100, 100), (0.25, 0.25)),
        ([A.OneOf([A.Blur(), A.CLAHE()], p=1), A.Resize(50, 50)], (100, 100), (0.5, 0.5)),
        ([A.OneOf([A.Affine(scale=(0.9, 1.1)), A.RandomScale(0.5)], p=1)], (100, 100), (1, 1)),
        ([A.HorizontalFlip(p=1)], (100, 100), (1, 1)),
    ],
)
def test_the_rule_of_a_pipeline_of_ones_own_follows_from_its_steps(steps, size, expected):
    assert training_scale(A.Compose(steps)).of(*size)[1:] == pytest.approx(expected)


@pytest.mark.parametrize(
    "steps",
    [
        [A.RandomCrop(50, 50), A.Resize(100, 100)],
        [A.OneOf([A.Resize(50, 50), A.Resize(70, 70)], p=1)],
        [A.RandomSizedCrop((30, 60), (50, 50))],
        [A.OneOf([A.Sequential([A.Resize(50, 50)]), A.RandomCrop(50, 50)], p=1)],
        [A.SomeOf([A.RandomScale((-0.75, -0.5)), A.HorizontalFlip()], n=1, p=1)],
        [A.OneOf([A.LongestMaxSize(50), A.RandomSizedCrop((30, 60), (50, 50))], p=1)],
        [A.LongestMaxSize(max_size_hw=(50, None))],
        [A.SmallestMaxSize(max_size_hw=(None, 50))],
        [A.CropAndPad(percent=-0.3)],
    ],
)
def test_an_unknown_scale_is_full_size_with_a_warning(steps, caplog):
    assert training_scale(A.Compose(steps)).is_full_size
    assert "the scale at which" in caplog.text
    assert "`training_scale`" in caplog.text


def test_an_augmentation_can_state_its_scale(monkeypatch):
    def stated(image, mask):
        return {"image": image, "mask": mask}

    assert training_scale(stated).is_full_size
    stated.training_scale = TrainingScale(factor=(0.5, 0.5))
    assert training_scale(stated).of(10, 20) == Resizing(1, 0.5, 0.5)
    own = Augmentation(lambda crop: [A.HorizontalFlip()], scale=lambda crop: TrainingScale(size=(crop, crop)))
    monkeypatch.setitem(AUGMENTATIONS, "own", own)
    assert training_scale(create_transform("own", crop=64)).of(128, 256) == Resizing(1, 0.5, 0.25)


class Photos(SegmentationDataset):
    class_names = ("a", "b", "c")

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def image(self, index):
        return np.resize(PHOTO, (*self.sizes[index], 3))

    def mask(self, index):
        return np.zeros(self.sizes[index], np.uint8)


@pytest.mark.parametrize(("height", "width"), [(31, 200), (61, 60), (125, 127), (240, 255)])
def test_a_loader_knows_how_far_it_reduces_each_photograph(height, width):
    data = Photos((height, width))
    loader = train_loader(data, create_transform("none", crop=16), batch_size=1, decode_at_least=30)
    small = data.small_sample(0, 30)[0]
    resizing = loader.dataset.training_scale.of(height, width)
    found = resizing(torch.from_numpy(data.image(0)).permute(2, 0, 1)[None].float())
    assert found.shape[-2:] == small.shape[:2]
    np.testing.assert_allclose(found[0].permute(1, 2, 0), small, atol=1)  # Pillow rounds
    assert (resizing.reduce > 1) == (height >= 60)


# Predictions at the scale of the training


def test_a_predictor_reduces_the_photograph_as_training_does_and_resizes_the_probabilities_back():
    created = model(HALVED)
    found = Predictor(created)(PHOTO)
    expected = probs_by_hand(created, halved(PHOTO), (76, 102))  # the last row and column are half outside
    np.testing.assert_allclose(found.probs, expected, atol=1e-4)
    assert np.array_equal(found.mask, found.probs.argmax(0))
    assert np.array_equal(created.predict(PHOTO).mask, found.mask)
    assert np.array_equal(Predictor(optimize(created, compile=False))(PHOTO).mask, found.mask)
    whole = Predictor(created, full_size=True)(PHOTO).probs
    np.testing.assert_allclose(whole, probs_by_hand(created, PHOTO, (75, 101)), atol=1e-5)
    assert np.abs(whole - found.probs).max() > 0.1


def test_a_predictor_stretches_the_photograph_as_the_augmentation_does():
    created = model(training_scale(create_transform("seed2", crop=32)))
    small = cv2.resize(PHOTO, (32, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(Predictor(created)(PHOTO).probs, probs_by_hand(created, small, (75, 101)), atol=0.05)


def test_one_output_channel_is_resized_as_a_probability():
    created = model(HALVED, class_names=("can",))
    expected = probs_by_hand(created, halved(PHOTO), (76, 102))
    np.testing.assert_allclose(Predictor(created)(PHOTO).probs, expected, atol=1e-4)


def test_members_of_different_scales_are_averaged_at_the_size_of_the_photograph():
    members = [model(HALVED), model(seed=1), model(TrainingScale(size=(32, 48)), seed=2)]
    single = [Predictor(member)(PHOTO).probs for member in members]
    found = Predictor(members, member_weights=(2, 1, 1))(PHOTO).probs
    np.testing.assert_allclose(found, 0.5 * single[0] + 0.25 * single[1] + 0.25 * single[2], atol=1e-5)


class ByColour(torch.nn.Module):
    """Predicts each pixel by its colour only, and notes the sizes of its inputs."""

    class_names = ("a", "b", "c")
    preprocessing = Preprocessing()

    def __init__(self, scale):
        super().__init__()
        self.training_scale = scale
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return images


def test_each_photograph_gets_its_own_factor_and_scales_multiply_it():
    by_colour = ByColour(TrainingScale(decode_at_least=64))
    predictor = Predictor(by_colour, tta=TTA(scales=(0.5, 1.0)))
    for size in ((64, 80), (128, 160), (256, 130), (512, 4000), (3, 2)):
        prediction = predictor(np.zeros((*size, 3), np.uint8))
        assert prediction.mask.shape == size
        assert prediction.probs.shape == (3, *size)
    assert by_colour.sizes == [
        *((32, 40), (64, 80)),
        *((32, 40), (64, 80)),
        *((64, 32), (128, 65)),
        *((32, 250), (64, 500)),
        *((2, 1), (3, 2)),
    ]


def test_tta_resizes_normalised_images_too():
    by_colour = ByColour(TrainingScale(size=(20, 20)))
    images = by_colour.preprocessing(np.stack([PHOTO, PHOTO]))
    for tta in (TTA(), TTA(brightness=(1, 1.1))):
        assert tta(by_colour, images).shape == (2, 3, 75, 101)
        assert tta.uncertainty(by_colour, images).std.shape == (2, 75, 101)
    assert set(by_colour.sizes) == {(20, 20)}


def test_a_window_is_as_large_as_the_input_of_the_model():
    smooth = np.uint8(np.mgrid[:256, :320].sum(0)[..., None] // np.array([3, 4, 6]))
    by_colour = ByColour(TrainingScale(decode_at_least=64))
    found = Predictor(by_colour, window=SlidingWindow(40))(smooth).probs
    assert set(by_colour.sizes) == {(40, 40)}
    assert len(by_colour.sizes) > 1
    np.testing.assert_allclose(found, Predictor(by_colour)(smooth).probs, atol=0.02)
    by_colour.sizes.clear()
    Predictor(by_colour, window=SlidingWindow(80))(smooth)
    assert by_colour.sizes == [(64, 80)]


def test_windows_that_show_more_of_the_image_are_predicted_fewer_at_once():
    window = SlidingWindow(40, batch_size=8)
    batches = [window.of(256, 320, factors=(f, f)).batch_size for f in (2.0, 1.0, 0.5, 0.25)]
    assert batches == [8, 8, 2, 1]


class MeanColour(ByColour):
    """Predicts the mean colour of its input, so that each window has another prediction."""

    def forward(self, images):
        super().forward(images)
        return images.mean((2, 3), keepdim=True).expand_as(images)


@pytest.mark.parametrize("probs", ["memory", "disk"])
@pytest.mark.parametrize("merge", ["mean", "vote", "sharpened"])
def test_the_windows_of_a_model_do_not_depend_on_the_other_members(merge, probs):
    scales = [TrainingScale(factor=(0.5, 0.5)), TrainingScale(factor=(0.1, 0.1)), TrainingScale(), TrainingScale()]
    members, weights = [MeanColour(scale) for scale in scales], (0.5, 0.25, 0.25, 0)
    options = {"tta": TTA(flips="h", merge=merge), "window": SlidingWindow(24), "probs": probs}
    found = Predictor(members, member_weights=weights, **options)(PHOTO)
    assert {size for member in members for size in member.sizes} == {(24, 24), (8, 10)}
    expected = sum(
        weight * Predictor(one, **options)(PHOTO).probs for one, weight in zip(members, weights, strict=True)
    )
    np.testing.assert_allclose(found.probs, expected, atol=1e-6)
    if merge == "mean":
        assert np.array_equal(found.mask, expected.argmax(0))


@pytest.mark.parametrize("merge", ["gmean", "max"])
def test_a_merge_that_compares_models_runs_them_in_the_same_windows(merge):
    small, large = ByColour(TrainingScale(decode_at_least=32)), ByColour(TrainingScale())
    Predictor([small, large], tta=TTA(merge=merge), window=SlidingWindow(37))(PHOTO)
    assert set(large.sizes) == {(38, 38)}  # of whole squares of 2 x 2 pixels
    assert set(small.sizes) == {(19, 19)}


@pytest.mark.parametrize("window", [None, SlidingWindow(24)])
def test_kept_probabilities_are_the_ones_of_the_predictor(window, tmp_path):
    data = Photos((75, 101), (40, 40))
    members = [model(HALVED), model(seed=1)]
    pixels = [np.arange(0, 75 * 101, 7), np.arange(40 * 40)]
    kept = MemberProbs(Predictor(members, window=window), pixels, tmp_path)
    kept.run(data)
    for i in range(2):
        found = Predictor(members, window=window)(data.image(i)).probs.reshape(3, -1)[:, pixels[i]]
        np.testing.assert_allclose(kept.mixture(i, (0.5, 0.5), [0]), found, atol=2e-3)
        for member, weights in zip(members, ((1, 0), (0, 1)), strict=True):
            alone = Predictor(member, window=window)(data.image(i)).probs.reshape(3, -1)[:, pixels[i]]
            np.testing.assert_allclose(kept.mixture(i, weights, [0]), alone, atol=2e-3)


# The model file


def test_a_model_file_keeps_the_scale(tmp_path):
    scale = TrainingScale(64, (32, 48), "crop", (0.5, 0.75), (0.9, 1.2), (0.5, 1.0))
    save_model(model(scale), tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").training_scale == scale


def test_numbers_of_numpy_can_be_saved(tmp_path):
    scale = TrainingScale(np.int64(64), tuple(np.array([32, 48])), factor=tuple(np.float32([0.5, 0.75])))
    save_model(model(scale), tmp_path / "m.safetensors")
    stored = load_model(tmp_path / "m.safetensors").training_scale
    assert stored == scale == TrainingScale(64, (32, 48), factor=(0.5, 0.75))


def test_a_model_file_of_an_older_segkit_is_used_at_full_size(tmp_path):
    content = model_bytes(model())
    older = content.replace(b', \\"training_scale\\": null', b" " * 26)
    assert older != content
    (tmp_path / "m.safetensors").write_bytes(older)
    assert load_model(tmp_path / "m.safetensors").training_scale.is_full_size


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (3, "`training_scale` must have decode_at_least, size"),
        ({"shrink": 2}, "`training_scale` must have decode_at_least, size"),
        ({"decode_at_least": "64"}, "`decode_at_least` must be a whole number"),
        ({"size": [64]}, "`size` of the training scale must be two positive whole numbers"),
        ({"size": 64}, "`size` of the training scale must be two positive whole numbers"),
        ({"factor": [0.0, 1.0]}, "`factor` of the training scale must be two positive numbers"),
        ({"share": [float("nan"), 1.0]}, "`share` of the training scale"),
        ({"fit": "zoom"}, "fit"),
    ],
)
def test_a_wrong_scale_in_a_header_is_one_sentence(stored, message):
    with pytest.raises(UsageError, match=message):
        TrainingScale.read(stored)
