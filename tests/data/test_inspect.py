"""`inspect` reads what the constructors read, with findings instead of errors and warnings."""

import json
import warnings

import numpy as np
import pytest
from helpers.shapes import write_shapes
from PIL import Image

from segkit.data import CocoSegmentation, DataError, FolderSegmentation

NAMES = ("background", "square", "disc")


@pytest.fixture
def faulty(tmp_path):
    """A COCO file with a missing image, a bad segmentation, an unknown id, a warning and two good images."""
    file = write_shapes(tmp_path, "x", 3, seed=1)
    (tmp_path / "images/x1.png").unlink()
    content = json.loads(file.read_text())
    rows = content["annotations"]
    rows[0]["segmentation"] = [["a", 1, 2, 3, 4, 5]]
    rows.append({"id": 90, "image_id": 8, "category_id": 3})
    rows.append({"id": 91, "image_id": 102, "category_id": 3, "segmentation": [[1, 2, 3, 4, 5]]})
    file.write_text(json.dumps(content))
    return file


def test_a_coco_file_with_faults_becomes_usable_images_and_findings(faulty):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = CocoSegmentation.inspect(faulty)
    assert [data.name(i) for i in range(len(data))] == ["images/x0.png", "images/x2.png"]
    kinds = {finding.kind for finding in data.findings}
    assert kinds == {"missing-image", "bad-segmentation", "unknown-image-id", "odd-coordinates"}
    assert {note.kind for note in data.notes} == kinds
    assert set(np.unique(data[0][1])) == {0, 2}  # the square cannot be read
    assert set(np.unique(data[1][1])) == {0, 1, 2}


def test_an_inspected_file_without_faults_is_the_data_set(shapes):
    data, inspected = CocoSegmentation(shapes[0]), CocoSegmentation.inspect(shapes[0])
    assert inspected.class_names == data.class_names
    assert [*inspected.items] == [*data.items]
    for (image, mask), (same_image, same_mask) in zip(inspected, data, strict=True):
        assert np.array_equal(image, same_image)
        assert np.array_equal(mask, same_mask)


def test_class_names_of_another_set_decide_the_labels(shapes):
    data = CocoSegmentation.inspect(shapes[0], class_names=("disc", "square"))
    assert data.class_names == ("background", "disc", "square")
    assert np.array_equal(data.mask(0), np.array([0, 2, 1])[CocoSegmentation(shapes[0]).mask(0)])
    lacking = CocoSegmentation.inspect(shapes[0], class_names=("background", "disc", "square", "ball"))
    assert lacking.class_names == ("background", "disc", "square", "ball")
    assert np.array_equal(lacking.mask(0), data.mask(0))
    assert [(f.kind, f.where, f.severity) for f in lacking.findings] == [("absent-category", "ball", "warning")]
    with pytest.raises(DataError, match="'square' is new here"):
        CocoSegmentation.inspect(shapes[0], class_names=("disc", "ball"))


def test_folders_with_faults_become_usable_images_and_findings(tmp_path):
    for folder, names in (("images", "abc"), ("masks", "abd")):
        (tmp_path / folder).mkdir()
        for name in names:
            shape = (3, 4, 3) if folder == "images" else (3, 4)
            Image.fromarray(np.full(shape, name == "b", dtype=np.uint8) * 9).save(tmp_path / folder / f"{name}.png")
    data = FolderSegmentation.inspect(tmp_path / "images", tmp_path / "masks", class_names=NAMES)
    assert [data.name(i) for i in range(len(data))] == ["a.png"]
    assert [(finding.kind, finding.where) for finding in data.findings] == [
        ("no-mask", "c.png"),
        ("no-image", "d.png"),
        ("mask-values", "b.png"),
    ]
    assert data.annotations is None
    with pytest.raises(DataError, match="`class_names` or a `palette`"):
        FolderSegmentation.inspect(tmp_path / "images", tmp_path / "masks")
