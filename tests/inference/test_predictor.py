import numpy as np
import pytest
import torch

from segkit.crf import DenseCRF
from segkit.inference import Predictor
from segkit.models import create_model
from segkit.models.optimized import optimize
from segkit.models.preprocessing import Preprocessing
from segkit.sliding_window import SlidingWindow
from segkit.tta import TTA

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


def model(seed=0, backbone="mobilenetv3_small_100", names=("a", "b", "c")):
    torch.manual_seed(seed)
    created = create_model("fpn", backbone=backbone, class_names=names, pyramid_channels=16, channels=16).eval()
    torch.nn.init.normal_(created.head.weight)  # logits far apart, so that members differ
    return created


def probs_of(member):
    with torch.inference_mode():
        images = member.preprocessing(torch.from_numpy(IMAGE).permute(2, 0, 1)[None])
        return member(images).softmax(1)[0].numpy()


def test_one_model_gives_its_own_probabilities():
    prediction = Predictor(model())(IMAGE)
    np.testing.assert_allclose(prediction.probs, probs_of(model()), atol=1e-5)
    assert np.array_equal(prediction.mask, prediction.probs.argmax(0))
    assert prediction.mask.dtype == np.uint8


def test_members_are_averaged_by_their_normalised_weights_each_with_its_own_preprocessing():
    first, second = model(0), model(1, backbone="tf_efficientnet_lite0")
    assert first.preprocessing != second.preprocessing
    probs = Predictor([first, second], member_weights=(1, 3))(IMAGE).probs
    np.testing.assert_allclose(probs, 0.25 * probs_of(first) + 0.75 * probs_of(second), atol=1e-5)


def test_the_crf_refines_the_averaged_probabilities():
    seen = []

    def refine(probs, image):
        seen.append((probs, image))
        return probs[::-1]

    prediction = Predictor(model(), crf=refine, tta=TTA(flips="v"))(IMAGE)
    assert seen[0][1] is IMAGE
    assert np.array_equal(prediction.probs, seen[0][0][::-1])


def test_a_class_bias_is_added_to_the_log_probabilities_and_the_crf_gets_the_result():
    expected = torch.from_numpy(probs_of(model())).log().add(torch.tensor([0.0, 1.5, -2.0])[:, None, None]).softmax(0)
    seen = []
    predictor = Predictor(
        model(), class_bias={"b": 1.5, "c": -2.0}, crf=lambda probs, image: seen.append(probs) or probs
    )
    prediction = predictor(IMAGE)
    np.testing.assert_allclose(prediction.probs, expected, atol=1e-5)
    np.testing.assert_allclose(seen[0], expected, atol=1e-5)
    without = Predictor(model(), class_bias={"b": 1.5, "c": -2.0}, probs="none")(IMAGE)
    assert np.array_equal(without.mask, expected.argmax(0))


def test_an_optimized_model_stands_for_the_model():
    expected, prediction = probs_of(model()), Predictor(optimize(model(), compile=False), tta=TTA())(IMAGE)
    np.testing.assert_allclose(prediction.probs, expected, atol=1e-4)


class ByColour(torch.nn.Module):
    """Tells classes by the colour of each pixel alone."""

    class_names = ("a", "b", "c")
    preprocessing = Preprocessing()

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape))
        return images * 2


@pytest.mark.parametrize("tta", [TTA(), TTA(flips="d4"), TTA(flips="v", merge="vote")])
@pytest.mark.parametrize("probs", ["memory", "disk", "none"])
def test_a_window_changes_nothing_for_a_model_that_sees_pixels_alone(tta, probs):
    whole = Predictor(ByColour(), tta=tta)(IMAGE)
    model = ByColour()
    found = Predictor(model, tta=tta, window=SlidingWindow(16), probs=probs)(IMAGE)
    assert {size[2:] for size in model.sizes} == {(16, 16)}
    assert np.array_equal(found.mask, whole.mask)
    if probs == "none":
        assert found.probs is None
    else:
        np.testing.assert_allclose(found.probs, whole.probs, atol=1e-6)
    assert isinstance(found.probs, np.memmap) == (probs == "disk")


def test_an_image_within_the_window_runs_as_a_whole():
    model = ByColour()
    Predictor(model, window=SlidingWindow(64))(IMAGE)
    assert model.sizes == [(1, 3, 37, 50)]


def test_members_share_the_views_and_those_of_weight_0_do_not_run():
    first, second = ByColour(), ByColour()
    Predictor([first, second], member_weights=(1, 0), tta=TTA(scales=(1, 0.5)))(IMAGE)
    assert len(first.sizes) == 2
    assert second.sizes == []


def test_a_read_only_image_is_segmented():
    image = IMAGE[:, ::-1]
    image.setflags(write=False)
    assert Predictor(ByColour())(image).mask.shape == (37, 50)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Predictor(model(), class_bias={"d": 1.0}), "no class 'd' for class_bias, the classes are a, b, c"),
        (lambda: Predictor(model(), class_bias={"a": float("nan")}), "class_bias must be numbers in -20 .. 20"),
        (lambda: Predictor(ByColour(), tta=TTA(merge="logits")), "merge='gmean'"),
        (lambda: Predictor(ByColour(), probs="ram"), "unknown probs 'ram'"),
        (lambda: Predictor(ByColour(), probs="none", crf=lambda p, i: p), "CRF needs"),
        (lambda: Predictor(ByColour())(IMAGE[:0]), "uint8 RGB"),
        (lambda: Predictor([]), "at least one model"),
        (lambda: Predictor([model(), model(names=("a", "b", "d"))]), "differ in their classes"),
        (lambda: Predictor(model(), member_weights=(1, 1)), "1 numbers"),
        (lambda: Predictor(model())(IMAGE.astype(float)), "uint8 RGB"),
        (lambda: Predictor(model())(IMAGE[..., 0]), "uint8 RGB"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3)])
def test_extreme_images_pass_views_windows_and_the_crf(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tta = TTA(scales=(0.5, 1.0), flips="d4")
    for window in (None, SlidingWindow(64)):
        prediction = Predictor(model(), tta=tta, window=window, crf=DenseCRF())(image)
        assert prediction.mask.shape == size
        assert np.isfinite(prediction.probs).all()
