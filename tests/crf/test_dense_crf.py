import sys

import numpy as np
import pytest
import torch

from segkit.crf import DenseCRF

RANDOM = np.random.default_rng(0)


def two_halves(noise=0.3):
    """An image of a dark and a light half, and probabilities of the halves with wrong pixels."""
    image = np.full((24, 30, 3), 40, dtype=np.uint8)
    image[:, 15:] = 200
    truth = (np.arange(30) >= 15) * np.ones((24, 1), dtype=int)
    wrong = RANDOM.random(truth.shape) < noise
    right = np.where(wrong, 0.4, 0.8)
    light = np.where(truth == 1, right, 1 - right)
    return np.stack([1 - light, light]).astype(np.float32), image, truth


def test_wrong_pixels_are_corrected_by_colour():
    pytest.importorskip("pydensecrf")
    probs, image, truth = two_halves()
    assert (probs.argmax(0) != truth).mean() > 0.2
    refined = DenseCRF()(probs, image)
    assert refined.dtype == np.float32
    assert (refined.argmax(0) != truth).mean() < 0.01
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_without_pairwise_terms_the_probabilities_stay():
    pytest.importorskip("pydensecrf")
    probs, image, _ = two_halves()
    np.testing.assert_allclose(DenseCRF(gaussian_weight=0, bilateral_weight=0)(probs, image), probs, atol=1e-5)


def test_a_batch_of_tensors_equals_its_images_one_by_one():
    pytest.importorskip("pydensecrf")
    (probs, image, _), (more, other, _) = two_halves(), two_halves(0.1)
    batch = DenseCRF()(torch.from_numpy(np.stack([probs, more])), np.stack([image, other]))
    assert isinstance(batch, torch.Tensor)
    assert np.array_equal(batch[1], DenseCRF()(more, other))


def test_the_callers_arrays_may_be_read_only_and_stay_as_they_are():
    pytest.importorskip("pydensecrf")
    probs, image, _ = two_halves()
    before = probs.copy()
    probs.setflags(write=False)
    image.setflags(write=False)
    DenseCRF()(probs, image[:, ::-1])
    assert np.array_equal(probs, before)


def wrong_inputs():
    probs, image, _ = two_halves()
    nan = probs.copy()
    nan[0, 3, 3] = np.nan
    return [
        (probs[0], image, "probs must be"),
        ((probs * 255).astype(np.uint8), image, "probs must be"),
        (probs, image.astype(np.float32), "uint8 RGB"),
        (probs, image.transpose(2, 0, 1), "uint8 RGB"),
        (probs, torch.from_numpy(image), "got Tensor"),
        (probs * 3 - 1, image, "not logits"),
        (nan, image, "hold no NaN"),
    ]


@pytest.mark.parametrize(("probs", "image", "message"), wrong_inputs())
def test_wrong_inputs_are_named(probs, image, message):
    pytest.importorskip("pydensecrf")
    with pytest.raises(ValueError, match=message):
        DenseCRF()(probs, image)


def test_a_missing_pydensecrf_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        DenseCRF()
