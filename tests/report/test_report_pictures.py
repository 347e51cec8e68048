import cv2
import numpy as np
import pytest
from helpers.fonts import write_font
from PIL import Image

from segkit.report import pictures, save_class_iou, save_confusion, save_curves


@pytest.mark.parametrize("classes", [1, 2, 70])
def test_a_confusion_matrix_is_drawn_at_any_number_of_classes(tmp_path, classes):
    counts = np.random.default_rng(0).integers(0, 50, (classes, classes))
    counts[-1] = 0  # no image has this class
    save_confusion(counts, [f"class {i}" for i in range(classes)], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert 400 < picture.width < 3000
        assert 300 < picture.height < 3000


def test_class_names_are_not_parsed_as_formulas_and_may_be_equal(tmp_path):
    names = ["$x^$", "$", "same", "same", "long " * 20]
    save_confusion(np.eye(5, dtype=np.int64), names, tmp_path / "x.png")
    save_class_iou(names, [0.1, 0.2, 0.9, float("nan"), 0.3], tmp_path / "y.png")
    with Image.open(tmp_path / "y.png") as picture:
        bars = np.asarray(picture.convert("RGB")) == (31, 119, 180)
    assert np.diff(bars.all(2).any(1).astype(int)).tolist().count(1) == 4


@pytest.mark.parametrize("epochs", [1, 2, 3, 40])
def test_the_epochs_of_the_curves_are_marked_at_whole_numbers(tmp_path, monkeypatch, epochs):
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    names = ("train_loss", "val_loss", "miou", "pixel_accuracy", "lr")
    save_curves([{"epoch": i + 1, **dict.fromkeys(names, 0.5)} for i in range(epochs)], tmp_path / "x.png")
    for axes in figures[0].axes:
        low, high = axes.get_xlim()
        marked = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert marked
        assert all(tick == round(tick) for tick in marked)


@pytest.mark.filterwarnings("error")
def test_names_that_the_own_font_lacks_are_drawn_in_a_font_that_has_them(system_fonts, tmp_path, caplog):
    write_font(system_fonts / "Squares.ttf", "玻璃")
    for name, squares in (("ii", False), ("玻璃", True)):
        save_class_iou(["background", name], [0.1, 0.2], tmp_path / "x.png")
        save_confusion(np.eye(2, dtype=int), ["background", name], tmp_path / "y.png")
        for file in ("x.png", "y.png"):
            with Image.open(tmp_path / file) as picture:
                is_black = (np.asarray(picture.convert("L")) < 20).astype(np.uint8)
            assert cv2.erode(is_black, np.ones((8, 8))).any() == squares
    assert not caplog.records


@pytest.mark.filterwarnings("error")
def test_names_that_no_font_has_are_shown_as_labels_with_one_warning(system_fonts, tmp_path, caplog):
    names = ["background", "종이", "can"]
    for _ in range(2):
        save_class_iou(names, [0.1, 0.2, 0.3], tmp_path / "x.png")
        save_confusion(np.eye(3, dtype=int), names, tmp_path / "y.png")
    (record,) = caplog.records
    assert "no font has all characters of '종이'; pictures show such a class by its number" in record.message
    save_class_iou(["background", "label 1", "can"], [0.1, 0.2, 0.3], tmp_path / "z.png")
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "z.png").read_bytes()
