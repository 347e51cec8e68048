import numpy as np
import pytest
from PIL import Image

from segkit.report import save_class_iou, save_confusion


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
