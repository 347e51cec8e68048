import copy
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from segkit.errors import DataError, UsageError
from segkit.inference import Prediction, Predictor
from segkit.models import create_model
from segkit.tta import TTA
from segkit.visualize import create_palette

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
NAMES = ("background", "can", "paper")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    created = create_model("fpn", backbone="test_resnet", class_names=NAMES, pretrained=False).eval()
    torch.nn.init.normal_(created.head.weight, std=3)
    return created


def prediction(**changes):
    mask = np.zeros((37, 50), np.uint8)
    mask[5:20, 10:30] = 2
    probs = np.full((3, 37, 50), 1 / 3, np.float32)
    return Prediction(**{"mask": mask, "probs": probs, "class_names": NAMES, "image": IMAGE, **changes})


def test_a_photograph_may_be_a_file_an_array_or_a_pil_image(model, tmp_path):
    expected = Predictor(model)(IMAGE)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    for photo in (IMAGE, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(IMAGE)):
        found = model.predict(photo)
        assert np.array_equal(found.mask, expected.mask)
        assert np.array_equal(found.probs, expected.probs)
        assert np.array_equal(found.image, IMAGE)
        assert found.class_names == NAMES


def test_exif_orientations_are_applied(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(IMAGE).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(IMAGE, -1)
    assert np.array_equal(model.predict(tmp_path / "a.png").image, upright)
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(model.predict(opened).image, upright)


def test_options_are_arguments_of_the_predictor(model):
    found = model.predict(IMAGE, tta=TTA(flips="h"), probs="none")
    assert found.probs is None
    assert np.array_equal(found.mask, Predictor(model, tta=TTA(flips="h"))(IMAGE).mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tta": "d4"}, "`tta` must be a TTA, got 'd4'"),
        ({"window": 512}, "`window` must be a SlidingWindow, or 0 for whole images, got 512"),
        ({"crf": True}, "`crf` must be a DenseCRF or a function, got True"),
        ({"device": "cuda"}, "move it by `model.to`"),
    ],
)
def test_an_option_that_cannot_be_is_named(model, options, message):
    with pytest.raises(UsageError, match=message):
        model.predict(IMAGE, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_predicts_the_same(model, dtype):
    found, expected = copy.deepcopy(model).to(dtype).predict(IMAGE), model.predict(IMAGE)
    assert found.probs.dtype == np.float32
    assert np.abs(found.probs - expected.probs).mean() < 0.02


def test_the_overlay_is_of_the_array_that_was_predicted(model):
    photo = IMAGE.copy()
    found = model.predict(photo)
    photo[:] = 0
    assert np.array_equal(found.image, IMAGE)


def test_a_closed_image_is_named(model, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as photo:
        pass
    with pytest.raises(DataError, match="damaged or closed"):
        model.predict(photo)


def test_a_model_in_training_stays_in_training():
    model = create_model("fpn", backbone="test_resnet", class_names=NAMES, pretrained=False).train()
    model.backbone.eval()
    before = [module.training for module in model.modules()]
    model.predict(IMAGE)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(UsageError):
        model.predict(IMAGE.astype(float))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("photo", "error", "message"),
    [
        ("missing.jpg", DataError, "there is no image at missing.jpg"),
        (IMAGE / 255, UsageError, r"image must be \(H, W, 3\) uint8 RGB, got \(37, 50, 3\) float64"),
        (IMAGE[..., 0], UsageError, r"got \(37, 50\) uint8"),
        (3, UsageError, "a photograph must be a path, an array .* or a PIL image, got int"),
    ],
)
def test_an_error_names_what_is_not_a_photograph(model, photo, error, message):
    with pytest.raises(error, match=message):
        model.predict(photo)


def test_an_error_names_a_file_that_is_not_an_image(model, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg is not an image"):
        model.predict(tmp_path / "a.jpg")


def test_the_overlay_tints_objects_and_keeps_the_background():
    found = prediction()
    picture = found.overlay(opacity=1.0)
    assert picture.shape == IMAGE.shape
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[found.mask == 0], IMAGE[found.mask == 0])
    assert (picture[found.mask == 2] == create_palette(3)[2]).all()
    assert found.overlay(legend=True).shape == IMAGE.shape, "no name fits"
    wide = prediction(mask=np.tile(found.mask, (1, 3)), image=np.tile(IMAGE, (1, 3, 1)))
    assert wide.overlay(legend=True).shape[0] > IMAGE.shape[0]


def test_the_suffix_decides_what_is_saved(tmp_path):
    found = prediction()
    for name in ("deep/a.png", "a.jpg", "a.npz"):
        found.save(tmp_path / name)
    with Image.open(tmp_path / "deep/a.png") as mask:
        assert np.array_equal(np.asarray(mask), found.mask)
        assert np.array_equal(np.array(mask.getpalette()).reshape(-1, 3)[:3], create_palette(3)[:3])
    with Image.open(tmp_path / "a.jpg") as overlay:
        assert overlay.size == found.overlay(legend=True).shape[1::-1]
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["class_names"].tolist() == list(NAMES)
        assert stored["probs"].dtype == np.float16


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "a.tif", "the suffix must be .png (label map), .jpg (overlay) or .npz (probabilities)"),
        ({"probs": None}, "a.npz", "does not hold its probabilities"),
        ({"image": None}, "a.jpg", "does not hold its image"),
        ({}, "file/a.png", "cannot make the folder"),
        ({}, "a" * 300 + ".png", "cannot write"),
    ],
)
def test_what_cannot_be_saved_is_an_error_and_nothing_is_written(tmp_path, changes, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=re.escape(message)):
        prediction(**changes).save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("image", [np.tile(IMAGE, (1, 3, 1)), None])
def test_a_notebook_shows_a_picture_with_a_legend(image):
    wide = prediction(mask=np.tile(prediction().mask, (1, 3)), image=image)
    with Image.open(io.BytesIO(wide._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert picture.width == 150
        assert picture.height > 37
    assert repr(prediction()) == "Prediction(37 x 50 pixels (height x width): background, paper)"


def test_a_notebook_shows_a_large_picture_smaller():
    mask = np.ones((40, 3000), np.uint8)
    large = Prediction(mask, None, NAMES, np.zeros((40, 3000, 3), np.uint8))
    with Image.open(io.BytesIO(large._repr_png_())) as picture:
        assert picture.width == 1024
