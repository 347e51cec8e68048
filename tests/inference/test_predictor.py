import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from segkit.crf import DenseCRF
from segkit.errors import NotFiniteError
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


def test_one_model_returns_its_own_probabilities():
    prediction = Predictor(model())(IMAGE)
    np.testing.assert_allclose(prediction.probs, probs_of(model()), atol=1e-5)
    assert np.array_equal(prediction.mask, prediction.probs.argmax(0))
    assert prediction.mask.dtype == np.uint8


@pytest.mark.parametrize(
    "options", [{}, {"window": SlidingWindow(32), "probs": "none"}, {"crf": lambda probs, _: probs}]
)
def test_labels_above_255_are_whole(options):
    many = model(names=[f"class {i}" for i in range(300)])
    with torch.no_grad():
        many.head.bias[290:] += 99
    mask = Predictor(many, **options)(IMAGE).mask
    assert mask.dtype == np.uint16
    assert mask.min() >= 290
    if not options:
        assert np.array_equal(mask, probs_of(many).argmax(0))


@pytest.mark.parametrize(("classes", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_the_label_255_needs_wide_masks_since_readers_ignore_it_in_others(classes, dtype):
    assert Predictor(model(names=[f"class {i}" for i in range(classes)]))(IMAGE).mask.dtype == dtype


def test_members_are_averaged_by_their_normalised_weights_each_with_its_own_preprocessing():
    first, second = model(0), model(1, backbone="tf_efficientnet_lite0")
    assert first.preprocessing != second.preprocessing
    probs = Predictor([first, second], member_weights=(1, 3))(IMAGE).probs
    np.testing.assert_allclose(probs, 0.25 * probs_of(first) + 0.75 * probs_of(second), atol=1e-5)


def test_the_crf_refines_the_averaged_probabilities():
    seen = []

    def refine(probs, image):
        seen.append((probs, image))
        return probs.flip(0)

    prediction = Predictor(model(), crf=refine, tta=TTA(flips="v"))(IMAGE)
    assert seen[0][1] is IMAGE
    assert np.array_equal(prediction.probs, seen[0][0].flip(0))


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


def test_an_optimized_model_can_replace_the_model():
    expected, prediction = probs_of(model()), Predictor(optimize(model(), compile=False), tta=TTA())(IMAGE)
    np.testing.assert_allclose(prediction.probs, expected, atol=1e-4)


class ByColour(torch.nn.Module):
    """Predicts each pixel by its colour only."""

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
def test_a_window_changes_nothing_for_a_model_without_context(tta, probs):
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


def test_an_image_that_fits_the_window_runs_whole():
    model = ByColour()
    Predictor(model, window=SlidingWindow(64))(IMAGE)
    assert model.sizes == [(1, 3, 37, 50)]


def test_each_model_has_the_window_of_its_validation_by_default():
    models = [ByColour(), ByColour(), ByColour()]
    models[0].window, models[1].window = SlidingWindow(16), SlidingWindow(20, above=37 * 50)
    for window, expected in (
        (None, [(16, 16), (37, 50), (37, 50)]),
        (0, [(37, 50)] * 3),
        (SlidingWindow(24), [(24, 24)] * 3),
    ):
        for model in models:
            model.sizes.clear()
        Predictor(models, window=window)(IMAGE)
        assert [{size[2:] for size in model.sizes} for model in models] == [{size} for size in expected]


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
        (lambda: Predictor(model(), class_bias={"d": 1.0}), "no class 'd' for `class_bias`, the classes are a, b, c"),
        (lambda: Predictor(model(), class_bias={"a": float("nan")}), "`class_bias` must be numbers in -20 .. 20"),
        (lambda: Predictor(ByColour(), tta=TTA(merge="logits")), "a TTA with `merge=gmean`"),
        (lambda: Predictor(ByColour(), probs="ram"), "unknown probs 'ram'"),
        (lambda: Predictor(ByColour())(IMAGE[:0]), "uint8 RGB"),
        (lambda: Predictor([]), "at least one model"),
        (lambda: Predictor("a.safetensors"), "takes models, got 'a.safetensors'; read a file by `segkit.load_model`"),
        (lambda: Predictor([model(), None]), "takes models, got None"),
        (lambda: Predictor(torch.nn.Conv2d(3, 2, 1)), "a Conv2d has no class_names and no preprocessing; give a model"),
        (lambda: Predictor(create_model("fpn", backbone="test_resnet", num_classes=2, in_channels=4)), "of 4 channels"),
        (lambda: Predictor(model())([IMAGE]), "a photograph must be a path, .* or a PIL image, got list"),
        (lambda: Predictor(model(), member_weights=3), "`member_weights` must be 1 numbers .*, got 3"),
        (lambda: Predictor(model(), member_weights=["a"]), "`member_weights` must be 1 numbers"),
        (lambda: Predictor(model(), class_bias={"a": "x"}), "`class_bias` must be numbers in -20 .. 20"),
        (lambda: Predictor(model(), class_bias=[1]), "`class_bias` must be a mapping from classes to numbers"),
        (lambda: Predictor(model(), device="gpu"), "there is no device 'gpu'"),
        (lambda: Predictor([model(), model(names=("a", "b", "d"))]), "differ in their classes"),
        (lambda: Predictor(model(), member_weights=(1, 1)), "1 numbers"),
        (lambda: Predictor(model())(IMAGE.astype(float)), "uint8 RGB"),
        (lambda: Predictor(model())(IMAGE[..., 0]), "uint8 RGB"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), pytest.param((2000, 3), marks=pytest.mark.slow)])
def test_views_windows_and_the_crf_work_for_extreme_image_sizes(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tta = TTA(scales=(0.5, 1.0), flips="d4")
    for window in (None, SlidingWindow(64)):
        prediction = Predictor(model(), tta=tta, window=window, crf=DenseCRF())(image)
        assert prediction.mask.shape == size
        assert np.isfinite(prediction.probs).all()


class Transfers(TorchFunctionMode):
    """Records what is copied to the host, as the types of the tensors."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.cpu:
            self.types.append(arguments[0].dtype)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("window", [None, SlidingWindow(16)])
@pytest.mark.parametrize("with_crf", [False, True])
def test_only_the_label_map_is_copied_to_the_host_and_only_once(window, with_crf):
    seen = []

    def refine(probs, image):
        seen.append(probs)
        return probs.flip(0)

    predictor = Predictor(ByColour(), window=window, crf=refine if with_crf else None, probs="none")
    with Transfers() as transfers:
        prediction = predictor(IMAGE)
    assert transfers.types == [torch.uint8]
    assert prediction.probs is None
    assert [(type(probs), probs.device) for probs in seen] == [(torch.Tensor, predictor.device)] * with_crf
    kept = Predictor(ByColour(), window=window, crf=refine if with_crf else None)(IMAGE)
    assert np.array_equal(prediction.mask, kept.mask)
    assert np.array_equal(kept.mask, kept.probs.argmax(0))


def test_a_dense_crf_refines_the_tensor_of_the_models_as_it_refines_arrays():
    plain = Predictor(model())(IMAGE)
    expected = DenseCRF()(plain.probs, IMAGE)
    for probs in ("memory", "disk"):
        refined = Predictor(model(), crf=DenseCRF(), probs=probs)(IMAGE)
        assert np.array_equal(refined.probs, expected)
        assert np.array_equal(refined.mask, expected.argmax(0))


def test_a_crf_may_return_an_array():
    found = Predictor(ByColour(), crf=lambda probs, image: probs.numpy()[[2, 1, 0]])(IMAGE)
    assert np.array_equal(found.probs, Predictor(ByColour())(IMAGE).probs[::-1])


def test_models_run_once_for_several_crfs():
    counted = ByColour()
    crfs = [None, DenseCRF(iterations=1), DenseCRF(iterations=3)]
    found = list(Predictor(counted).compare_crfs(IMAGE, crfs))
    assert len(counted.sizes) == 1
    for crf, prediction in zip(crfs, found, strict=True):
        assert np.array_equal(prediction.probs, Predictor(ByColour(), crf=crf)(IMAGE).probs)


def test_a_crf_for_which_the_gpu_is_too_small_runs_on_the_cpu(caplog):
    calls = []

    def refine(probs, image):
        calls.append(probs)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return probs

    assert Predictor(ByColour(), crf=refine)(IMAGE).mask.shape == (37, 50)
    assert len(calls) == 2
    assert "the CRF of an image of 37 x 50 pixels; it runs on the CPU" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("window", [None, SlidingWindow(16)])
@pytest.mark.parametrize("crf", [None, DenseCRF()])
def test_cuda_predicts_what_the_cpu_predicts_and_refines_there(window, crf):
    options = {"window": window, "crf": crf, "class_bias": {"b": 0.5}, "tta": TTA(scales=(0.5, 1), flips="h")}
    on_cpu, on_gpu = (Predictor(model(), device=device, **options)(IMAGE) for device in ("cpu", "cuda"))
    assert (on_cpu.mask == on_gpu.mask).mean() > 0.99
    np.testing.assert_allclose(on_cpu.probs, on_gpu.probs, atol=0.05)
    if crf is not None:
        seen = []
        whole = Predictor(model(), crf=lambda probs, image: seen.append(probs) or crf(probs, image), device="cuda")
        whole(IMAGE)
        assert seen[0].is_cuda
        assert crf(seen[0], IMAGE).is_cuda


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_the_host_gets_the_label_map_only():
    predictor = Predictor(model(), crf=DenseCRF(), probs="none", device="cuda")
    with Transfers() as transfers:
        predictor(IMAGE)
    assert transfers.types == [torch.uint8]


class Red(torch.nn.Module):
    """One channel: how red a pixel is, 0 at the mean of ImageNet."""

    class_names = ("rust",)
    preprocessing = Preprocessing()

    def forward(self, images):
        return images[:, :1]


def test_one_channel_is_a_class_with_its_sigmoid_against_the_background():
    probs = 1 / (1 + np.exp(-(IMAGE[..., 0] / 255 - 0.485) / 0.229))
    for window in (None, SlidingWindow(16)):
        prediction = Predictor(Red(), tta=TTA(flips="hv"), window=window)(IMAGE)
        assert prediction.class_names == ("background", "rust")
        np.testing.assert_allclose(prediction.probs, [1 - probs, probs], atol=1e-5)
        assert np.array_equal(prediction.mask, probs > 0.5)
    biased = Predictor(Red(), class_bias={"rust": -1.0})(IMAGE)
    assert np.array_equal(biased.mask, IMAGE[..., 0] / 255 > 0.485 + 0.229)
    refined = Predictor(Red(), crf=DenseCRF())(IMAGE)
    np.testing.assert_allclose(refined.probs, DenseCRF()(np.float32([1 - probs, probs]), IMAGE), atol=1e-4)


class Broken(ByColour):
    """ByColour with a value that is not finite at one pixel."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        logits = super().forward(images)
        logits[0, 1, 2, 3] = self.value
        return logits


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("window", [None, SlidingWindow(16)])
@pytest.mark.parametrize("crf", [None, DenseCRF()])
@pytest.mark.parametrize("merge", ["mean", "vote"])
def test_logits_that_are_not_finite_are_an_error_instead_of_a_label(value, window, crf, merge):
    predictor = Predictor(Broken(value), window=window, crf=crf, tta=TTA(merge=merge), probs="none")
    with pytest.raises(NotFiniteError, match="the model returns values that are not finite"):
        predictor(IMAGE)


def test_a_class_that_the_model_rules_out_is_no_error():
    assert (Predictor(Broken(-np.inf))(IMAGE).mask != 1).any()


def test_a_crf_that_returns_nan_is_named():
    with pytest.raises(NotFiniteError, match="the CRF returns values that are not finite"):
        Predictor(ByColour(), crf=lambda probs, image: probs * np.nan)(IMAGE)


def test_a_file_and_a_pil_image_are_photographs_with_their_exif_orientation(tmp_path):
    expected = Predictor(ByColour())(np.rot90(IMAGE, -1)).mask
    picture, exif = Image.fromarray(IMAGE), Image.Exif()
    exif[0x0112] = 6  # the camera was turned to the left
    picture.save(tmp_path / "a.png", exif=exif)
    for photo in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        prediction = Predictor(ByColour())(photo)
        assert np.array_equal(prediction.mask, expected)
        assert np.array_equal(prediction.image, np.rot90(IMAGE, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_predicts(dtype):
    found = Predictor(model().to(dtype), tta=TTA(scales=(0.5, 1), flips="h"))(IMAGE)
    np.testing.assert_allclose(
        found.probs, Predictor(model(), tta=TTA(scales=(0.5, 1), flips="h"))(IMAGE).probs, atol=0.1
    )


def test_models_with_one_and_two_channels_are_averaged_if_their_labels_are_the_same():
    class Two(torch.nn.Module):
        class_names = ("background", "rust")
        preprocessing = Preprocessing()

        def forward(self, images):
            return images[:, 1:]

    probs = Predictor([Red(), Two()])(IMAGE).probs
    np.testing.assert_allclose(probs, (Predictor(Red())(IMAGE).probs + Predictor(Two())(IMAGE).probs) / 2, atol=1e-6)


def test_the_first_of_equally_likely_classes_is_the_label():
    class Undecided(ByColour):
        def forward(self, images):
            logits = torch.zeros_like(images)
            logits[..., 1:, :][:, 0] = -1
            logits[..., :5] = torch.inf
            logits[..., 1:, :5] = 1.0
            return logits.nan_to_num(posinf=30.0)

    mask = Predictor(Undecided())(IMAGE).mask
    assert np.array_equal(mask[0], np.zeros(50))
    assert set(mask[1:, :5].ravel()) == {0}
    assert set(mask[1:, 5:].ravel()) == {1}
