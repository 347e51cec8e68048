import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from segkit.crf import PRESETS, DenseCRF

RANDOM = np.random.default_rng(0)


def two_halves(noise=0.3, dark=40, light=200, stripe=15):
    """An image of a dark and a light half (or stripes), and probabilities of the two with wrong pixels."""
    truth = np.arange(30) // stripe % 2 * np.ones((24, 1), dtype=int)
    image = np.where(truth, light, dark).astype(np.uint8)[..., None].repeat(3, 2)
    wrong = RANDOM.random(truth.shape) < noise
    right = np.where(wrong, 0.4, 0.8)
    second = np.where(truth == 1, right, 1 - right)
    return np.stack([1 - second, second]).astype(np.float32), image, truth


def scene(classes=6, size=(40, 52)):
    """A coloured image with soft blocks, and probabilities of any shape."""
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 255, (size[0] // 8 + 1, size[1] // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    image = (blocks[: size[0], : size[1]] + rng.normal(0, 6, (*size, 3))).clip(0, 255).astype(np.uint8)
    logits = torch.from_numpy(rng.normal(0, 1.5, (classes, *size)).astype(np.float32))
    return logits.softmax(0).numpy(), image


@pytest.fixture(params=["torch", "pydensecrf"])
def crf(request):
    """DenseCRF with each of the engines."""
    if request.param == "pydensecrf":
        pytest.importorskip("pydensecrf")
    return partial(DenseCRF, backend=request.param)


def test_wrong_pixels_are_corrected_by_colour(crf):
    probs, image, truth = two_halves()
    assert (probs.argmax(0) != truth).mean() > 0.2
    refined = crf()(probs, image)
    assert refined.dtype == np.float32
    assert (refined.argmax(0) != truth).mean() < 0.01
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_shades_that_a_rounded_image_would_merge_stay_different(crf):
    probs, image, truth = two_halves(dark=140, light=220, stripe=3)
    rounded = np.uint8(255 * np.around(image / 255))
    assert len(np.unique(rounded)) == 1
    assert (crf()(probs, image).argmax(0) != truth).mean() < 0.01
    assert (crf()(probs, rounded).argmax(0) != truth).mean() > 0.2


def test_without_pairwise_terms_the_probabilities_stay(crf):
    probs, image, _ = two_halves()
    np.testing.assert_allclose(crf(gaussian_weight=0, bilateral_weight=0)(probs, image), probs, atol=1e-5)
    np.testing.assert_allclose(crf(iterations=0)(probs, image), probs, atol=1e-5)


def test_a_batch_of_tensors_equals_its_images_one_by_one(crf):
    (probs, image, _), (more, other, _) = two_halves(), two_halves(0.1)
    batch = crf()(torch.from_numpy(np.stack([probs, more])), torch.from_numpy(np.stack([image, other])))
    assert isinstance(batch, torch.Tensor)
    assert np.array_equal(batch[1], crf()(more, other))


def test_an_empty_batch_stays_empty(crf):
    assert crf()(np.zeros((0, 2, 4, 4), np.float32), np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 2, 4, 4)


def test_the_callers_arrays_may_be_read_only_and_stay_as_they_are(crf):
    probs, image, _ = two_halves()
    before = probs.copy()
    probs.setflags(write=False)
    image.setflags(write=False)
    crf()(probs, image[:, ::-1])
    assert np.array_equal(probs, before)


def test_half_and_double_precision_and_strides_return_the_same_labels(crf):
    probs, image = scene()
    expected = crf()(probs, image)
    strided = np.asfortranarray(probs.astype(np.float64))
    np.testing.assert_allclose(crf()(strided, np.asfortranarray(image)), expected, atol=1e-6)
    half = crf()(torch.from_numpy(probs).half(), image)
    assert half.dtype == torch.float32
    assert (half.argmax(0).numpy() == expected.argmax(0)).mean() > 0.99


@pytest.mark.parametrize("shape", [(1, 5, 7), (1, 1, 1), (3, 1, 1), (2, 1, 9)])
def test_one_class_and_one_pixel(crf, shape):
    probs = np.full(shape, 1 / shape[0], np.float32)
    refined = crf()(probs, np.zeros((*shape[1:], 3), np.uint8))
    np.testing.assert_allclose(refined, probs, atol=1e-6)


def test_relabelled_classes_give_relabelled_results(crf):
    probs, image = scene()
    order = [3, 0, 5, 1, 4, 2]
    np.testing.assert_allclose(crf()(probs[order], image), crf()(probs, image)[order], atol=1e-5)


def test_absent_classes_hardly_change_the_result(crf):
    probs, image = scene(classes=3)
    full = np.zeros((7, *probs.shape[1:]), np.float32)
    full[[1, 2, 5]] = probs * (1 - 4e-6)
    full[[0, 3, 4, 6]] = 1e-6
    pruned, all_classes = crf()(full, image), crf(active_threshold=0)(full, image)
    assert (pruned[[0, 3, 4, 6]] == 0).all()
    assert np.array_equal(pruned.argmax(0), all_classes.argmax(0))
    np.testing.assert_allclose(pruned, all_classes, atol=1e-3)
    np.testing.assert_allclose(pruned.sum(0), 1, atol=1e-5)


def test_the_same_image_again_returns_the_same_bits(crf):
    probs, image = scene()
    other, same = probs[::-1].copy(), crf()
    expected = crf()(other, image)
    same(probs, image)
    assert np.array_equal(same(other, image.copy()), expected)


def test_an_image_changed_in_place_is_another_image(crf):
    probs, image = scene()
    same = crf()
    same(probs, image)
    image[:, :20] = 0
    assert np.array_equal(same(probs, image), crf()(probs, image))


def test_tolerance_stops_when_few_labels_change(crf):
    probs, image, _ = two_halves()
    steps = [crf(iterations=n)(probs, image) for n in range(1, 11)]
    early = crf(tolerance=0.01)(probs, image)
    changes = [(a.argmax(0) != b.argmax(0)).mean() for a, b in pairwise(steps)]
    stop = next(n for n, change in enumerate(changes, start=1) if change < 0.01)
    assert stop < 9
    assert np.array_equal(early, steps[stop])


def wrong_inputs():
    probs, image, _ = two_halves()
    nan = probs.copy()
    nan[0, 3, 3] = np.nan
    return [
        (probs[0], image, "`probs` must be"),
        (probs.tolist(), image, "got list"),
        ((probs * 255).astype(np.uint8), image, "`probs` must be"),
        (probs, image.astype(np.float32), "must be uint8 RGB"),
        (probs, image.transpose(2, 0, 1), "uint8 RGB"),
        (probs, image[..., 0], "uint8 RGB"),
        (probs, image[:-1], "uint8 RGB"),
        (probs, torch.from_numpy(image / 255), "got torch.float64"),
        (probs, image.tolist(), "got list"),
        (probs * 3 - 1, image, "softmax first"),
        (probs / 2, image, "sum to 1"),
        (nan, image, "without NaN"),
        (probs[:, :0], image[:0], "1 to"),
        (np.broadcast_to(np.float32(1), (1, 30000, 30000)), image, "tile larger images"),
    ]


@pytest.mark.parametrize(("probs", "image", "message"), wrong_inputs())
def test_wrong_inputs_are_named(probs, image, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF()(probs, image)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_refines(name):
    probs, image, truth = two_halves()
    refined = DenseCRF.preset(name, tolerance=0.001)(probs, image)
    assert (refined.argmax(0) != truth).mean() < 0.05


def test_the_defaults_are_the_seeds_and_changes_win():
    assert DenseCRF.preset("seed") == DenseCRF()
    crf = DenseCRF.preset("deeplab_v2_resnet101", iterations=3)
    assert (crf.iterations, crf.gaussian_sigma, crf.bilateral_sigma, crf.bilateral_weight) == (3, 1, 67, 4)


def test_an_unknown_preset_is_named_with_its_nearest():
    with pytest.raises(ValueError, match="did you mean 'deeplab_v2_vgg16'"):
        DenseCRF.preset("deeplab_v2_vgg")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", -1),
        ("gaussian_sigma", 0),
        ("bilateral_weight", -1),
        ("active_threshold", 1),
        ("workers", 1.5),
        ("backend", "gpu"),
    ],
)
def test_wrong_parameters_are_named(crf, name, value):
    with pytest.raises(ValueError, match=name):
        crf(**{name: value})


def test_only_the_backend_pydensecrf_needs_pydensecrf(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    probs, image, truth = two_halves()
    assert (DenseCRF()(probs, image).argmax(0) != truth).mean() < 0.01
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        DenseCRF(backend="pydensecrf")


def test_numbers_of_numpy_are_parameters_and_texts_are_not():
    assert DenseCRF(iterations=np.int64(3), workers=np.int64(0), tolerance=np.float32(0)) == DenseCRF(iterations=3)
    for name in ("iterations", "gaussian_sigma", "gaussian_weight", "tolerance", "workers"):
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got '1'"):
            DenseCRF(**{name: "1"})
