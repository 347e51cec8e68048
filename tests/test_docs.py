"""The code of the pages in docs/ does what the pages say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.onnx_files import CLASSES, Pointwise, write_onnx
from PIL import Image

from segkit.models import load_model
from segkit.models.quantize import quantize_onnx
from segkit.training_scale import TrainingScale

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAGE = (Path(__file__).parents[1] / "docs" / "onnxruntime.md").read_text(encoding="utf-8")
SHORT, LONG = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SIZES = [(40, 60), (33, 97), (1, 7)]


def mask_of(code, folder, file, size):
    """Return the mask that the code writes for a photograph, and the mask of `load_model`."""
    height, width = size
    noise = np.random.default_rng(height).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    exif = photo.getexif()
    exif[274] = 6  # rotated
    photo.save(folder / "photo.jpg", exif=exif)
    names = {"model.onnx": file, "photo.jpg": folder / "photo.jpg", "mask.png": folder / "mask.png"}
    for name, path in names.items():
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', repr(str(path)))
    exec(compile(code, "docs/onnxruntime.md", "exec"), {})
    return np.array(Image.open(folder / "mask.png")), load_model(file).predict(folder / "photo.jpg").mask


def test_the_short_code_has_twelve_lines():
    assert len([line for line in SHORT.splitlines() if line]) == 12


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("code", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("classes", [CLASSES, ("car",)], ids=["three", "one"])
def test_the_code_writes_the_mask_of_segkit(tmp_path, size, code, classes):
    write_onnx(tmp_path / "m.onnx", Pointwise(classes))
    mask, expected = mask_of(code, tmp_path, tmp_path / "m.onnx", size)
    np.testing.assert_array_equal(mask, expected)
    assert len(np.unique(mask)) > 1 or size == (1, 7)


@pytest.fixture(scope="module")
def in_int8(exported, tmp_path_factory):
    file = tmp_path_factory.mktemp("int8") / "m.onnx"
    quantize_onnx(exported[1], file, [torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))])
    return file


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_the_code_runs_exported_files(tmp_path, size, form, exported, in_int8):
    for code in (SHORT, LONG):
        mask, expected = mask_of(code, tmp_path, exported[1] if form == "float32" else in_int8, size)
        assert (mask == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1 or size == (1, 7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "scale",
    [
        TrainingScale(decode_at_least=10),
        TrainingScale(size=(24, 20)),
        TrainingScale(size=(24, 20), fit="cover"),
        TrainingScale(size=(96, 80), fit="contain", factor=(1.0, 0.75)),
        TrainingScale(size=(24, 32), fit="crop", share=(0.25, 1.0)),
        TrainingScale(size=(64, 64), fit="crop", share=(0.5, 0.9), ratio=(0.9, 1.1)),
        TrainingScale(decode_at_least=12, size=(48, 48), fit="crop", share=(0.1, 0.4), factor=(0.5, 0.7)),
    ],
    ids=str,
)
def test_the_long_code_follows_the_training_scale(tmp_path, size, scale):
    write_onnx(tmp_path / "m.onnx", Pointwise(scale=scale))
    mask, expected = mask_of(LONG, tmp_path, tmp_path / "m.onnx", size)
    assert (mask == expected).mean() > 0.999
    with pytest.raises(AssertionError, match="needs photographs of another size"):
        mask_of(SHORT, tmp_path, tmp_path / "m.onnx", size)
