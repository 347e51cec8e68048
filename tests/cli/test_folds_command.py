import json
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.cli import folds, train
from segkit.config import TrainConfig, parse_args
from segkit.data import DataWarning, write_image
from segkit.workflows.datasets import load_data

ROOT = Path(__file__).parents[2]
NAMES = ("can", "box", "rare")


def write_set(file, images=20, site=True):
    """Write a COCO file: a box in each image, a can in every second, something rare in five."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, annotations = [], []
    for i in range(images):
        row = {"id": i, "file_name": f"{file.stem}_{i:02}.png", "height": 16, "width": 16}
        rows.append(row | ({"site": i // 2} if site else {}))
        for category in [2] + [1] * (i % 2) + [3] * (i % 4 == 0):
            ids = {"id": len(annotations), "image_id": i, "category_id": category}
            width = 1 + (i * category) % 9
            annotations.append(ids | {"segmentation": [[0, category, width, category, width, 9, 0, 9]], "iscrowd": 0})
        picture = np.random.default_rng(i // 2).integers(0, 255, (16, 16, 3), dtype=np.uint8)  # pairs look alike
        write_image(file.parent / row["file_name"], picture)
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    file.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
    return file


@pytest.fixture
def data(tmp_path):
    return write_set(tmp_path / "all.json")


def run(*arguments):
    folds.main([str(a) for a in arguments])


def fails(command, *arguments):
    with pytest.raises(SystemExit) as stop:
        command.main([str(a) for a in arguments])
    return stop.value.code


def names_in(file):
    return [image["file_name"] for image in json.loads(file.read_text())["images"]]


def validated(out, k):
    return [names_in(out / f"valid_data{fold}.json") for fold in range(k)]


def test_the_files_hold_every_image_once_and_the_table_says_how_even_they_are(data, tmp_path, capsys):
    out = tmp_path / "folds"
    run(data, "--k", 5, "--out", out)
    assert len(list(out.iterdir())) == 10
    assert sorted(chain.from_iterable(validated(out, 5))) == names_in(data)
    printed = capsys.readouterr().out
    assert f"{data}: 20 images, 35 annotations, 3 classes" in printed
    assert re.search(r"rare +5( +20\.0 +\d+\.\d){5}", printed)
    these, chance, greedy = (
        [float(x) for x in re.search(rf"{name} +([\d. ]+)$", printed, re.M)[1].split()]
        for name in ("these folds", "by chance, mean of 10", "greedy by annotations")
    )
    assert len(these) == len(chance) == len(greedy) == 4
    assert these[-1] < chance[-1]
    assert f"--data {out}/train_data0.json --val {out}/valid_data0.json --images {data.parent}" in printed


def test_a_group_column_and_near_duplicates_stay_together(data, tmp_path, capsys):
    for number, flags in enumerate((["--group-by", "site"], ["--near-duplicates"])):
        out = tmp_path / str(number)
        run(data, "--k", 3, "--out", out, *flags)
        for names in validated(out, 3):
            numbers = {int(name[4:6]) for name in names}
            assert {n ^ 1 for n in numbers} == numbers
        assert "groups 10 of images that stay together, the largest of 2" in capsys.readouterr().out


def test_a_group_that_is_null_is_no_group(data, tmp_path, capsys):
    content = json.loads(data.read_text())
    content["images"][3]["site"] = None
    data.write_text(json.dumps(content))
    assert fails(folds, data, "--out", tmp_path, "--group-by", "site") == 3
    assert "the image all_03.png has no 'site'" in capsys.readouterr().err


def test_images_without_annotations_are_divided(data, tmp_path, capsys):
    content = json.loads(data.read_text())
    data.write_text(json.dumps(content | {"annotations": []}))
    run(data, "--k", 4, "--out", tmp_path / "folds")
    assert [len(names) for names in validated(tmp_path / "folds", 4)] == [5] * 4
    assert "20 images, 0 annotations" in capsys.readouterr().out


def test_an_annotation_that_cannot_be_read_is_named(data, tmp_path, capsys):
    content = json.loads(data.read_text())
    content["annotations"][3]["segmentation"] = {"counts": "0hb0"}
    data.write_text(json.dumps(content))
    assert fails(folds, data, "--out", tmp_path / "folds") == 3
    assert "annotation 3 of all_01.png has a segmentation that cannot be read" in capsys.readouterr().err


def test_train_only_images_never_validate(data, tmp_path):
    pseudo = write_set(tmp_path / "pseudo.json", 4, site=False)
    run(data, "--out", tmp_path, "--train-only", pseudo, "--group-by", "site")
    assert sorted(chain.from_iterable(validated(tmp_path, 5))) == names_in(data)
    for fold in range(5):
        assert set(names_in(pseudo)) < set(names_in(tmp_path / f"train_data{fold}.json"))


def test_a_pseudo_label_of_a_validation_image_does_not_train(data, tmp_path):
    again = tmp_path / "again.json"
    again.write_text(data.read_text())
    run(data, "--out", tmp_path, "--train-only", again)
    for fold in range(5):
        assert not set(names_in(tmp_path / f"train_data{fold}.json")) & set(validated(tmp_path, 5)[fold])


def test_a_pseudo_label_of_a_validation_image_does_not_train_under_another_spelling(data, tmp_path):
    content = json.loads(data.read_text())
    again = tmp_path / "again.json"
    again.write_text(json.dumps(content))
    for image in content["images"]:  # as Windows writes it; infer names its results by the files
        image["file_name"] = f"C:\\photographs\\{image['file_name'].upper()}"
    data.write_text(json.dumps(content))
    run(data, "--out", tmp_path, "--train-only", again, "--near-duplicates")
    for fold, held_out in enumerate(validated(tmp_path, 5)):
        plain = {name.rpartition("\\")[2].lower() for name in held_out}
        assert held_out
        assert not plain & set(names_in(tmp_path / f"train_data{fold}.json"))


def test_older_folds_are_replaced_only_on_request_and_then_all(data, tmp_path, capsys):
    out = tmp_path / "folds"
    run(data, "--k", 4, "--out", out)
    assert fails(folds, data, "--k", 2, "--out", out) == 2
    assert "train_data0.json exists already; choose another --out" in capsys.readouterr().err
    run(data, "--k", 2, "--out", out, "--overwrite")
    assert len(list(out.iterdir())) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.json"], 3, "there is no annotation file at none.json"),
        (["all.json", "--k", "1"], 2, "--k must be at least 2, got 1"),
        (["all.json", "--k", "21"], 2, "21 folds need at least 21 images, got 20"),
        (["all.json", "--k", "11", "--group-by", "site"], 2, "which form 10 groups that stay together"),
        (["all.json", "--group-by", "place"], 3, "the image all_00.png has no 'place', it has id, file_name"),
        (["all.json", "--near-duplicates", "--images", "nowhere"], 3, "there is no image at nowhere/all_00.png"),
        (["all.json", "--train-only", "sub/pseudo.json"], 2, "lie in two folders; give --images"),
        (["all.json", "--seed", "-1"], 2, "--seed must be 0 or more"),
        (["all.json", "--kk", "3"], 2, "--kk"),
    ],
)
def test_a_wrong_argument_ends_in_one_sentence_and_writes_nothing(
    data, tmp_path, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    assert fails(folds, *arguments, "--out", "out") == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("out").exists()


def test_out_may_be_no_file_and_no_input_is_replaced(data, tmp_path, capsys):
    assert fails(folds, data, "--out", data) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
    run(data, "--k", 2, "--out", tmp_path)
    source = tmp_path / "train_data0.json"
    assert fails(folds, source, "--k", 2, "--out", tmp_path, "--overwrite") == 2
    assert "would be replaced; choose another --out" in capsys.readouterr().err
    assert source.is_file()


def test_files_that_are_named_like_folds_but_are_not_of_segkit_stay(data, tmp_path, capsys):
    run(data, "--k", 2, "--out", tmp_path)
    mine = tmp_path / "valid_data7.json"
    mine.write_bytes(data.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert fails(folds, data, "--k", 2, "--out", tmp_path, "--seed", 1, "--overwrite") == 2
    assert f"{mine} has no mark that segkit wrote it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before


def test_a_fold_can_be_divided_again(data, tmp_path):
    run(data, "--k", 2, "--out", tmp_path / "a")
    run(tmp_path / "a/train_data0.json", "--k", 5, "--images", data.parent, "--out", tmp_path / "b")
    content = json.loads((tmp_path / "b/valid_data4.json").read_text())
    assert content["segkit_fold"] == {"number": 4, "k": 5}


def test_the_command_to_train_has_the_folder_of_the_images_only_if_they_are_there(data, tmp_path, capsys):
    run(data, "--k", 2, "--out", tmp_path / "the folds")
    files = f"--data '{tmp_path}/the folds/train_data0.json' --val '{tmp_path}/the folds/valid_data0.json'"
    assert capsys.readouterr().out.endswith(f"use it: python train.py {files} --images {tmp_path}\n")
    (tmp_path / "labels").mkdir()
    run(data.rename(tmp_path / "labels/all.json"), "--k", 2, "--out", tmp_path / "b")
    assert capsys.readouterr().out.endswith(" --images FOLDER_OF_THE_IMAGES\n")


def test_help_imports_no_torch():
    code = (
        "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        "sys.argv = ['segkit', 'folds', '--help']; runpy.run_module('segkit', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--near-duplicates" in result.stdout
    assert result.stdout.strip().endswith("False")


# train.py


def loaded(*arguments):
    sets = load_data(parse_args(TrainConfig, [str(a) for a in arguments], prog="train.py"))
    return [[part.name(i) for i in range(len(part))] for part in sets]


def test_train_divides_as_the_command_does(data, tmp_path):
    run(data, "--k", 4, "--out", tmp_path / "folds", "--seed", 3)
    for fold in range(4):
        names, held_out = loaded("--data", data, "--folds", 4, "--fold", fold, "--seed", 3)
        assert held_out == names_in(tmp_path / "folds" / f"valid_data{fold}.json")
        assert names == names_in(tmp_path / "folds" / f"train_data{fold}.json")


def test_train_divides_several_files_and_never_validates_on_train_only_ones(data, tmp_path):
    more, pseudo = write_set(tmp_path / "b" / "more.json", 6), write_set(tmp_path / "c" / "pseudo.json", 3)
    seen = []
    for fold in range(3):
        names, held_out = loaded("--data", data, more, "--train-only", pseudo, "--folds", 3, "--fold", fold)
        assert names[-3:] == names_in(pseudo)
        assert len(names) + len(held_out) == 29
        seen += held_out
    assert sorted(seen) == sorted(names_in(data) + names_in(more))
    roots = [data.parent, more.parent, pseudo.parent]
    images = loaded("--data", data, more, "--train-only", pseudo, "--images", *roots, "--folds", 3, "--fold", 2)
    assert images[1] == held_out


@pytest.mark.parametrize("flags", [["--folds", 4, "--fold", 1], ["--val-fraction", 0.3], ["--val", "VAL"]])
def test_a_train_only_image_whose_file_validates_is_dropped(data, tmp_path, flags):
    again, val = tmp_path / "again.json", tmp_path / "val.json"
    again.write_text(data.read_text())
    val.write_text(data.read_text())
    flags = [val if flag == "VAL" else flag for flag in flags]
    names, held_out = loaded("--data", write_set(tmp_path / "b" / "b.json", 4) if val in flags else data, *flags)
    joined, same = loaded("--data", tmp_path / "b" / "b.json" if val in flags else data, *flags, "--train-only", again)
    assert same == held_out
    assert joined[: len(names)] == names
    assert not set(joined) & set(held_out)


def test_train_keeps_a_file_and_a_link_to_it_in_one_fold(data, tmp_path):
    (tmp_path / "link").symlink_to(data.parent, target_is_directory=True)
    roots = [data.parent, tmp_path / "link"]
    with pytest.warns(DataWarning, match="listed as several images"):
        names, held_out = loaded("--data", data, data, "--images", *roots, "--folds", 4, "--fold", 0)
    assert held_out
    assert not set(names) & set(held_out)


def test_folds_of_image_and_mask_folders(tmp_path):
    for i in range(6):
        write_image(tmp_path / f"{i}.png", np.zeros((8, 8, 3), dtype=np.uint8))
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        (tmp_path / f"{i}.png").rename(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.full((8, 8), i % 2, dtype=np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "names.txt").write_text("ground\nthing\n")
    where = ["--data", tmp_path / "images", "--masks", tmp_path / "masks", "--class-names", tmp_path / "names.txt"]
    for fold in range(3):
        _, held_out = loaded(*where, "--folds", 3, "--fold", fold)
        assert sorted(int(name[0]) % 2 for name in held_out) == [0, 1]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--folds", "5"], 2, "--folds and --fold belong together"),
        (["--fold", "0"], 2, "--folds and --fold belong together"),
        (["--folds", "5", "--fold", "5"], 2, "--fold must be in 0..4, or all, got 5"),
        (["--folds", "5", "--fold", "-1"], 2, "--fold must be in 0..4, or all, got -1"),
        (["--folds", "1", "--fold", "0"], 2, "--folds must be at least 2, got 1"),
        (["--folds", "21", "--fold", "0"], 2, "21 folds need at least 21 images, got 20"),
        (["--folds", "2", "--fold", "0", "--val", "all.json"], 2, "drop --val, or --folds and --fold"),
        (["--folds", "2", "--fold", "0", "--train-only", "none.json"], 3, "there is no annotation file at none.json"),
    ],
)
def test_wrong_folds_end_train_in_one_sentence(data, tmp_path, monkeypatch, capsys, flags, code, message):
    monkeypatch.chdir(tmp_path)
    assert fails(train, "--data", "all.json", "--workers", "0", "--device", "cpu", *flags) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


@pytest.mark.parametrize("flags", [["--folds", "2", "--fold", "0"], ["--train-only", "a.json"]])
def test_folds_without_data_end_train_in_one_sentence(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    assert fails(train, *flags) == 2
    assert "needs --data" in capsys.readouterr().err
