import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.shapes import rectangle, write_coco, write_shapes
from PIL import Image

from segkit.cli import check, train

TABLES = ["classes.csv", "findings.csv", "overlaps.csv"]
PICTURES = ["class_examples.png", "rarest_classes.png", "worst_cases.png"]


def run(*words):
    """Run the command; returns its exit code."""
    try:
        check.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code
    return 0


def rows(file):
    return list(csv.DictReader(file.open(encoding="utf-8")))


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def faulty(tmp_path):
    """A COCO file with faults of many kinds."""
    file = write_shapes(tmp_path / "data", "train", 4, seed=5)
    content = json.loads(file.read_text())
    content["images"].append({"id": 1, "file_name": "images/gone.png", "height": 48, "width": 64})
    folder = file.parent / "images"
    Image.fromarray(np.full((48, 64, 3), 77, dtype=np.uint8)).save(folder / "flat.png")
    content["images"].append({"id": 2, "file_name": "images/flat.png", "height": 48, "width": 64})
    content["annotations"].append(
        {"id": 90, "image_id": 2, "category_id": 3, "segmentation": [rectangle(-9, -9, 99, 99), [1, 2, 3, 4, 5]]}
    )
    content["annotations"].append({"id": 91, "image_id": 2, "category_id": 7, "segmentation": [rectangle(0, 0, 9, 9)]})
    (folder / "copy.png").write_bytes((folder / "train0.png").read_bytes())
    content["images"].append({"id": 3, "file_name": "images/copy.png", "height": 48, "width": 64})
    file.write_text(json.dumps(content))
    return file


def test_clean_data_has_tables_pictures_and_exit_code_0(shapes, tmp_path, capsys):
    assert run(*shapes, "--out", tmp_path / "o") == 0
    printed = capsys.readouterr().out
    assert "train  12 images, 24 annotations, 3 classes; all 48 x 64 pixels" in printed
    assert "0 errors" in printed
    assert "--full decodes them" in printed
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert [name for name in names if name.endswith("csv")] == TABLES
    assert set(names) - set(TABLES) <= set(PICTURES)
    for row in rows(tmp_path / "o/classes.csv"):
        count = {"train": 12, "val": 4}[row["set"]]
        assert (row["images"], row["image_share"]) == (str(count), "1.0")
        assert row["annotations"] == ("0" if row["class"] == "background" else str(count))
    shares = [float(row["pixel_share"]) for row in rows(tmp_path / "o/classes.csv") if row["set"] == "val"]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_faults_are_printed_tabled_and_pictured_and_the_exit_code_is_3(faulty, tmp_path, capsys):
    before = digests(faulty.parent)
    assert run(faulty, "--full", "--out", tmp_path / "o") == 3
    printed = capsys.readouterr().out
    found = {(row["severity"], row["kind"], row["where"]) for row in rows(tmp_path / "o/findings.csv")}
    assert {row["set"] for row in rows(tmp_path / "o/findings.csv")} == {"train"}
    assert {
        ("error", "missing-image", "images/gone.png"),
        ("warning", "one-colour", "images/flat.png"),
        ("warning", "same-bytes", "images/copy.png"),
        ("warning", "odd-coordinates", "annotation 90 of images/flat.png"),
        ("note", "covers-all", "images/flat.png"),
        ("note", "no-annotations", "images/copy.png"),
    } <= found
    assert "error    train: " in printed
    assert "1 error, " in printed
    assert "training would stop with these errors" in printed
    assert [row["pixels"] for row in rows(tmp_path / "o/overlaps.csv")] == ["81"]
    for name in PICTURES:
        with Image.open(tmp_path / "o" / name) as picture:
            assert min(picture.size) > 150
    assert digests(faulty.parent) == before


def test_a_validation_image_from_the_training_set_is_a_warning(shapes, tmp_path, capsys):
    leak = json.loads(shapes[1].read_text())
    leak["images"][0]["file_name"] = "images/train3.png"
    val = shapes[0].parent / "leak.json"
    val.write_text(json.dumps(leak))
    assert run(shapes[0], val, "--out", tmp_path / "o") == 0
    assert "same-file-across" in {row["kind"] for row in rows(tmp_path / "o/findings.csv")}
    assert "also in another set" in capsys.readouterr().out


def test_folders_of_masks_are_checked_too(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "masks").mkdir()
        picture = np.random.default_rng(len(name)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / name / "images/a.jpg")
        Image.fromarray(np.uint8(np.arange(2000).reshape(40, 50) % 3)).save(tmp_path / name / "masks/a.png")
    (tmp_path / "names.txt").write_text("ground\nleaf\nstem\n")
    words = [tmp_path / "one/images", tmp_path / "two/images", "--class-names", tmp_path / "names.txt"]
    assert run(*words, "--masks", tmp_path / "one/masks", tmp_path / "two/masks", "--out", tmp_path / "o") == 0
    printed = capsys.readouterr().out
    assert "one/images  1 image, masks from files, 3 classes" in printed
    Image.fromarray(np.full((40, 50), 7, dtype=np.uint8)).save(tmp_path / "two/masks/a.png")
    assert run(*words, "--masks", tmp_path / "one/masks", tmp_path / "two/masks", "--out", tmp_path / "p") == 3
    (row,) = [row for row in rows(tmp_path / "p/findings.csv") if row["kind"] == "mask-values"]
    assert row["where"] == "a.jpg"
    assert "a.png has the values 7" in row["sentence"]


def test_sets_that_number_the_same_categories_otherwise_are_compared_by_name(shapes, tmp_path):
    content = json.loads(shapes[1].read_text())
    for row in content["categories"]:
        row["id"] = 100 - row["id"]
    for row in content["annotations"]:
        row["category_id"] = 100 - row["category_id"]
    val = shapes[1].parent / "renumbered.json"
    val.write_text(json.dumps(content))
    assert run(*shapes, "--out", tmp_path / "a") == run(shapes[0], val, "--out", tmp_path / "b") == 0
    first, second = ([list(row.values())[1:] for row in rows(tmp_path / n / "classes.csv")] for n in "ab")
    assert first == second


def test_other_classes_are_one_sentence(shapes, tmp_path, capsys):
    other = write_coco(tmp_path / "val.json", [], [], categories=[{"id": 3, "name": "ball"}])
    assert run(shapes[0], other, "--out", tmp_path / "o") == 3
    error = capsys.readouterr().err
    assert "do not match the classes square, disc: 'ball' is new here, 'square' is missing here, 'disc' is m" in error
    assert run(shapes[0], shapes[0]) == 2
    assert "names the same file twice" in capsys.readouterr().err


def test_a_test_set_has_no_errors_in_a_check_but_cannot_be_trained_on(tmp_path, capsys):
    Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 40, "width": 50}
    file = write_coco(tmp_path / "x.json", [image], [])
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    assert run(file, "--full", "--out", tmp_path / "o") == 0
    output = capsys.readouterr().out
    assert "sets without annotations, as test sets are; they can be neither learnt nor scored: 1 (x)" in output
    found = {row["kind"]: row["severity"] for row in rows(tmp_path / "o/findings.csv")}
    assert found == {"unannotated": "warning", "one-colour": "warning", "no-annotations": "note"}
    with pytest.raises(SystemExit, match="3"):
        train.main(["--data", str(tmp_path / "x.json"), "--device", "cpu", "--out", str(tmp_path / "run")])
    assert "has no annotations" in capsys.readouterr().err


def test_annotations_that_paint_nothing_are_a_warning(tmp_path):
    Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 40, "width": 50}
    speck = [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]]
    file = write_coco(tmp_path / "x.json", [image], [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": speck}])
    assert run(file, "--out", tmp_path / "o") == 0
    assert "nothing-painted" in {row["kind"] for row in rows(tmp_path / "o/findings.csv")}


def test_names_that_are_not_utf_8_are_tabled_and_pictured(tmp_path):
    file = write_shapes(tmp_path / "data", "train", 1, seed=5)
    (file.parent / "images/train0.png").rename(file.parent / "images/\udcff.png")
    content = json.loads(file.read_text().replace("train0", "\\udcff"))
    content["categories"][0]["name"] = "\ud800"
    content["annotations"].append({"id": 90, "image_id": 100, "category_id": 7, "segmentation": []})
    content["annotations"].append({"id": 90, "image_id": 100, "category_id": 3, "segmentation": [[1, 2, 3, 4, 5]]})
    file.write_text(json.dumps(content))
    assert run(file, "--out", tmp_path / "o") == 0
    assert "annotation 90 of images/\\udcff.png" in {row["where"] for row in rows(tmp_path / "o/findings.csv")}
    assert {"\\ud800", "square"} < {row["class"] for row in rows(tmp_path / "o/classes.csv")}
    assert {path.name for path in (tmp_path / "o").iterdir()} == {*TABLES, *PICTURES}


def test_the_command_line_knows_it():
    command = [sys.executable, "-m", "segkit", "check", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(check.__file__).parents[2])
    assert "--full" in printed.stdout
