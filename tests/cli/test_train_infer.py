import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import SMALL, at_forward, fails, signal_at_batch, train_arguments
from helpers.shapes import write_shapes
from PIL import Image

import segkit
from segkit.cli import infer, train
from segkit.data import DataWarning
from segkit.losses import LOSSES
from segkit.models import DECODERS, load_model, read_header

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    train.main(train_arguments(shapes, out, "--epochs", "2"))
    return out


def test_a_run_folder_holds_model_state_results_settings_and_pictures(run):
    assert sorted(path.name for path in run.iterdir()) == [
        *("args.yaml", "best.png", "best.safetensors", "class_iou.png", "confusion_matrix.csv"),
        *("confusion_matrix.png", "curves.png", "env.json", "last.prev.pt", "last.pt", "report.html"),
        *("results.csv", "train_batch.png", "val_predictions.png", "worst.png"),
    ]
    rows = list(csv.DictReader((run / "results.csv").open()))
    assert list(rows[0]) == [
        *("epoch", "train_loss", "val_loss", "miou", "pixel_accuracy", "lr", "time"),
        *("iou/background", "iou/square", "iou/disc"),
    ]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert load_model(run).class_names == ("background", "square", "disc")
    best = max(float(row["miou"]) for row in rows)
    assert read_header(run / "best.safetensors")["extra"]["miou"] == pytest.approx(best, abs=1e-5)
    assert yaml.safe_load((run / "args.yaml").read_text())["loss"] == {"ce": 0.6, "dice": 0.4}


def test_training_learns(shapes, tmp_path):
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "20", "--val-every", "10"))
    rows = list(csv.DictReader((tmp_path / "a" / "results.csv").open()))
    assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
    assert float(rows[-1]["miou"]) > 0.5


def test_a_resumed_run_equals_one_that_was_not_interrupted(shapes, run, tmp_path, capsys):
    out = tmp_path / "b"
    with signal_at_batch(3):  # the first of the second epoch
        assert fails(train, *train_arguments(shapes, out, "--epochs", "2")) == 130
    train.main(train_arguments(shapes, out, "--epochs", "2", "--resume"))
    assert "after epoch 1 and 1 batches of the next" in capsys.readouterr().out
    whole, resumed = (torch.load(folder / "last.pt", weights_only=True) for folder in (run, out))
    assert all(torch.equal(value, resumed["model"][key]) for key, value in whole["model"].items())
    assert [row["val_loss"] for row in whole["history"]] == [row["val_loss"] for row in resumed["history"]]


def test_without_data_it_trains_on_the_demo_in_the_next_free_folder(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segkit.workflows.train.write_demo", lambda folder: shapes)
    (tmp_path / "runs/train1").mkdir(parents=True)
    train.main([*SMALL, "--epochs", "1"])
    printed = capsys.readouterr().out
    assert printed.startswith("DEMO: no data is given")
    assert "This was the demo." in printed
    assert f"look at it: {Path('runs/train2/report.html')}\n" in printed
    assert Path("runs/train2/report.html").is_file()
    assert not any(Path("runs/train1").iterdir())


def test_the_settings_of_a_run_repeat_it(run, tmp_path):
    train.main(["--config", str(run / "args.yaml"), "--out", str(tmp_path / "again")])
    first, again = (torch.load(folder / "last.pt", weights_only=True) for folder in (run, tmp_path / "again"))
    assert all(torch.equal(value, again["model"][key]) for key, value in first["model"].items())
    lines = [(folder / "args.yaml").read_text().splitlines() for folder in (run, tmp_path / "again")]
    assert [line for line in lines[1] if line not in lines[0]] == [f"out: {tmp_path / 'again'}"]


def test_a_run_is_not_repeated_into_its_own_folder(run, capsys):
    assert fails(train, "--config", run) == 2
    assert "exists already; choose another --out" in capsys.readouterr().err


def test_without_a_validation_file_a_share_is_split_off(shapes, tmp_path, capsys):
    train.main(
        ["--data", str(shapes[0]), "--out", str(tmp_path / "a"), *SMALL, "--epochs", "1", "--val-fraction", "0.25"]
    )
    assert "9 training and 3 validation images" in capsys.readouterr().out


def test_infer_writes_the_predictions_of_the_model(run, shapes, tmp_path):
    infer.main(["--weights", str(run), "--source", str(shapes[1]), "--out", str(tmp_path / "o"), "--device", "cpu"])
    mask = np.asarray(Image.open(tmp_path / "o/mask/images/val2.png"))
    image = np.asarray(Image.open(shapes[1].parent / "images/val2.png"))
    model = load_model(run)
    with torch.inference_mode():
        logits = model(model.preprocessing(torch.tensor(image).permute(2, 0, 1)[None]))
    assert np.array_equal(mask, logits[0].argmax(0).numpy())
    assert Image.open(tmp_path / "o/overlay/images/val2.jpg").width == 64
    rows = list(csv.DictReader((tmp_path / "o/manifest.csv").open()))
    assert [row["image"] for row in rows] == [f"images/val{i}.png" for i in range(4)]


def test_infer_takes_a_folder_and_one_image(run, shapes, tmp_path):
    folder = shapes[0].parent / "images"
    arguments = ["--weights", run / "best.safetensors", "--device", "cpu"]
    infer.main([str(a) for a in (*arguments, "--source", folder, "--out", tmp_path / "all")])
    infer.main(
        [str(a) for a in (*arguments, "--source", folder / "val0.png", "--out", tmp_path / "one", "--flips", "hv")]
    )
    assert len(list((tmp_path / "all/mask").iterdir())) == 16
    assert [path.name for path in (tmp_path / "one/mask").iterdir()] == ["val0.png"]


def test_a_bad_image_is_skipped_with_a_message_and_the_others_are_written(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "in/good.png")
    (tmp_path / "in/bad.jpg").write_text("no image")
    assert fails(infer, "--weights", run, "--source", tmp_path / "in", "--out", tmp_path / "o", "--device", "cpu") == 5
    assert "bad.jpg is not an image" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "o/mask").iterdir()] == ["good.png"]


def test_one_class_and_one_image_train(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    content = {
        "images": [{"id": 0, "file_name": "dot.png", "height": 1, "width": 1}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": {"size": [1, 1], "counts": [0, 1]}}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    file = tmp_path / "x.json"
    with pytest.warns(DataWarning, match=r"`val`: images that are also in another set, .*: 1 \(dot\.png\)"):
        train.main(train_arguments((file, file), tmp_path / "a", "--epochs", "1"))
    assert (tmp_path / "a/best.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--data", "none.json"], 3, "there is no annotation file at none.json"),
        (["--model", "fppn"], 2, "did you mean 'fpn'"),
        (["--backbone", "resnet81"], 2, "did you mean 'resnet1"),
        (["--pretrained", "weights.safetensors"], 2, "there is no weights file weights.safetensors"),
        (["--loss", "dise=1"], 2, "did you mean 'dice'"),
        (["--optimizer", "fusedadam"], 2, "optimizer 'fusedadam' is not available here"),
        (["--optimizer", "adamm"], 2, "unknown optimizer 'adamm'; did you mean"),
        (["--augment", "much"], 2, "unknown augmentation 'much'"),
        (["--decoder", "width=3"], 2, "unknown option of fpn 'width'"),
        (["--decoder", "in_channels=4"], 2, "no option in_channels; it is set by the photographs, which have 3"),
        (["--decoder", "backbone=x"], 2, "--decoder has no option backbone; it is set by --backbone"),
        (["--decoder", "channels=abc"], 2, "`channels` must be a whole number of at least 1, got 'abc'"),
        (["--device", "tpu?"], 2, "unknown --device"),
        (["--device", "meta"], 2, "unknown --device 'meta'"),
        (["--resume"], 2, "nothing to resume"),
        (["--images", "a", "b", "c"], 2, "--images needs one folder, or one for each of the 2 JSON files"),
        (["--lr", "1e9", "--clip-grad", "0", "--epochs", "9"], 4, "try a lower --lr"),
    ],
)
def test_a_wrong_setting_ends_in_one_sentence(shapes, tmp_path, capsys, change, code, message):
    assert fails(train, *train_arguments(shapes, tmp_path / "a", *change)) == code
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ")
    assert "Traceback" not in error
    if code != 4:
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--larning-rate", "1"], "did you mean --lr?"),
        (["--modle", "fpn"], "did you mean --model?"),
        (["--loss", "ce="], "expected NAME=WEIGHT"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_a_misspelt_flag_or_value_is_named(capsys, arguments, message):
    assert fails(train, *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten(run, shapes, capsys):
    assert fails(train, *train_arguments(shapes, run)) == 2
    assert "exists already; choose another --out, or resume it with --resume" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:.*are also in another set:segkit.errors.DataWarning")
def test_another_class_list_cannot_be_resumed(run, shapes, tmp_path, capsys):
    content = json.loads(shapes[0].read_text())
    content["categories"][0]["name"] = "ball"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    arguments = [
        "--data",
        other,
        "--val",
        other,
        "--images",
        shapes[0].parent,
        "--out",
        run,
        "--epochs",
        "3",
        "--resume",
    ]
    assert fails(train, *arguments) == 2
    assert "the run had 3 classes, now there are 3; class 2 is disc there, ball here" in capsys.readouterr().err
    assert fails(infer, "--weights", run, "--source", other, "--images", shapes[0].parent, "--out", tmp_path / "o") == 3
    assert "has the category 'ball', but the classes of the model are background, " in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_in_training_is_named(shapes, tmp_path, capsys, workers):
    content = json.loads(shapes[0].read_text())
    for image in content["images"]:
        (tmp_path / image["file_name"]).parent.mkdir(exist_ok=True)
        (tmp_path / image["file_name"]).write_text("no image")
    (tmp_path / "bad.json").write_text(json.dumps(content))
    arguments = ["--data", tmp_path / "bad.json", "--out", tmp_path / "a", *SMALL, "--workers", workers]
    assert fails(train, *arguments) == 3
    assert ".png is not an image that can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.safetensors"], "there is no model file none.safetensors"),
        (["--weights", "RUN", "--source", "nowhere"], "there is no file or folder nowhere"),
        (["--weights", "RUN", "--source", "."], "no images below ."),
        ([], "there is no trained model"),
    ],
)
def test_infer_names_what_is_missing(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert fails(infer, *(str(run) if a == "RUN" else a for a in arguments)) in (2, 3)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback(shapes, tmp_path):
    with at_forward(lambda model: int("not a number")), pytest.raises(ValueError, match="invalid literal"):
        train.main(train_arguments(shapes, tmp_path / "a"))


@pytest.mark.parametrize("script", [["train.py"], ["infer.py"], ["-m", "segkit"], ["-m", "segkit", "train"]])
def test_help_comes_without_torch(script):
    code = "import runpy, sys; sys.argv = sys.argv[1:]; "
    code += (
        "runpy.run_module('segkit', run_name='__main__')"
        if script[0] == "-m"
        else f"runpy.run_path({script[0]!r}, run_name='__main__')"
    )
    arguments = ["segkit", *script[2:]] if script[0] == "-m" else script
    program = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("False")
    assert "train" in result.stdout or "Segment photographs" in result.stdout


@pytest.mark.parametrize(
    ("started", "command", "usage", "example"),
    [
        ("train.py", train, "train.py", "python train.py --data"),
        ("segkit/__main__.py", train, "segkit train", "python -m segkit train --data"),
        ("segkit/__main__.py", infer, "segkit infer", "python -m segkit infer --weights"),
    ],
)
def test_help_names_the_command_as_it_was_started(started, command, usage, example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(ROOT / started)])
    with pytest.raises(SystemExit):
        command.main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {usage} [")
    assert f"\n  {example}" in out


def test_an_unknown_command_is_named():
    result = subprocess.run([sys.executable, "-m", "segkit", "trian"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no command 'trian'" in result.stderr


def test_ignored_classes_are_neither_learnt_nor_scored(shapes, tmp_path, capsys):
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "1", "--ignore-classes", "disc"))
    (row,) = csv.DictReader((tmp_path / "a" / "results.csv").open())
    mean = (float(row["iou/background"]) + float(row["iou/square"])) / 2
    assert float(row["miou"]) == pytest.approx(mean, abs=1e-5)
    assert yaml.safe_load((tmp_path / "a" / "args.yaml").read_text())["ignore_classes"] == ["disc"]
    out = capsys.readouterr().out
    assert "where objects overlap, the smaller object lies on top; neither learnt nor scored: disc" in out
    scored = segkit.evaluate(weights=tmp_path / "a", data=shapes[1], out=tmp_path / "e", device="cpu")
    assert scored.scores["miou"] == pytest.approx(float(row["miou"]), abs=1e-5)  # ignored there, too
    assert fails(train, *train_arguments(shapes, tmp_path / "b", "--ignore-classes", "dics")) == 3
    assert "no class 'dics' to ignore" in capsys.readouterr().err


@pytest.fixture
def untidy(tmp_path):
    """Six photographs: one is gray, one is an HTML page, one is missing, one is truncated."""
    file = write_shapes(tmp_path, "x", 6, seed=4)
    Image.open(tmp_path / "images/x0.png").convert("L").save(tmp_path / "images/x0.png")
    (tmp_path / "images/x1.png").write_text("<!DOCTYPE html>")
    (tmp_path / "images/x2.png").unlink()
    path = tmp_path / "images/x3.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return file


def test_bad_images_are_an_error_that_lists_them_or_are_skipped_and_reported(untidy, shapes, tmp_path, capsys):
    arguments = train_arguments((untidy, shapes[1]), tmp_path / "a", "--epochs", "2")
    assert fails(train, *arguments) == 3
    error = capsys.readouterr().err
    assert "x1.png is not an image" in error
    assert "no image at" in error
    assert fails(train, *arguments, "--on-bad", "skip") == 3
    assert "2 of 6 images cannot be used, more than --max-bad 0.01" in capsys.readouterr().err
    train.main([*arguments, "--on-bad", "skip", "--max-bad", "0.5"])
    out = capsys.readouterr().out
    assert "data: skipped: missing images: 1 (images/x2.png)" in out
    assert "data: gray images, converted to RGB: 1 (images/x0.png)" in out
    assert "labels 0 background, 1 square (category 3), 2 disc (category 7)" in out
    reported = (tmp_path / "a/data_report.csv").read_text().splitlines()
    assert reported[0] == "set,severity,kind,where,sentence"
    assert any(line.startswith("train,error,missing-image,images/x2.png,") for line in reported)
    assert "1 damaged training image replaced by others (images/x3.png)" in out


def test_bad_validation_images_are_never_skipped(untidy, shapes, tmp_path, capsys):
    arguments = train_arguments((shapes[0], untidy), tmp_path / "a", "--epochs", "1", "--on-bad", "skip")
    assert fails(train, *arguments) == 3
    assert "x1.png is not an image" in capsys.readouterr().err


def test_a_file_that_is_listed_twice_is_a_warning_in_training_and_an_error_in_validation(shapes, tmp_path, capsys):
    file = write_shapes(tmp_path, "x", 3, seed=4)
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0] | {"id": 999})
    file.write_text(json.dumps(content))
    with pytest.warns(DataWarning, match="files that are listed as several images"):
        assert fails(train, *train_arguments((shapes[0], file), tmp_path / "a")) == 3
    assert "x0.png is listed as 2 images, which a score would count several times" in capsys.readouterr().err
    with pytest.warns(DataWarning, match="files that are listed as several images"):
        train.main(train_arguments((file, shapes[1]), tmp_path / "b", "--epochs", "1"))


def test_a_training_set_without_annotations_is_an_error(shapes, tmp_path, capsys):
    file = write_shapes(tmp_path, "x", 3, seed=4)
    file.write_text(json.dumps({key: v for key, v in json.loads(file.read_text()).items() if key != "annotations"}))
    assert fails(train, *train_arguments((file, shapes[1]), tmp_path / "a")) == 3
    assert f"--data {file} has no annotations" in capsys.readouterr().err


def test_masks_are_cached_for_the_user_unless_that_is_off(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "1"))
    assert not (tmp_path / "cache/segkit/masks").exists()
    train.main(train_arguments(shapes, tmp_path / "b", "--epochs", "1", "--mask-cache", "auto"))
    assert len(list((tmp_path / "cache/segkit/masks").rglob("*.png"))) == 16


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the working folder that adds a decoder and a loss, and counts its imports in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_parts.py").write_text(
        "from segkit.losses import LOSSES, DiceLoss\n"
        "from segkit.models import DECODERS, FPN\n"
        "class Mine(FPN): pass\n"
        "class MyLoss(DiceLoss): pass\n"
        "DECODERS['mine'], LOSSES['my_loss'] = Mine, MyLoss\n"
        "open('imports.txt', 'a').write('x')\n"
    )

    def forget():
        """Be as a new process, and return how often the module was imported."""
        DECODERS.pop("mine", None)
        LOSSES.pop("my_loss", None)
        sys.modules.pop("my_parts", None)
        return len((tmp_path / "imports.txt").read_text()) if (tmp_path / "imports.txt").exists() else 0

    yield forget
    forget()


def test_a_model_of_ones_own_is_used_by_the_printed_command_and_only_by_it(own_module, shapes, capsys):
    words = ("--imports", "my_parts", "--model", "mine", "--loss", "my_loss", "--epochs", "1")
    train.main(train_arguments(shapes, Path("a"), *words))
    (command,) = re.findall("use it: python infer.py (.*)", capsys.readouterr().out)
    assert command == "--weights a --imports my_parts --source photographs/"
    assert "python infer.py --weights a --imports my_parts" in Path("a/report.html").read_text()
    assert read_header("a/best.safetensors")["modules"] == ["my_parts"]
    assert "my_parts" not in Path("a/args.yaml").read_text()
    assert own_module() == 1
    source = ["--source", str(shapes[1]), "--device", "cpu"]
    for call in (
        lambda: fails(infer, "--weights", "a", *source),
        lambda: fails(train, *train_arguments(shapes, Path("b"), "--init-from", "a")),
        lambda: fails(train, "--resume", "a", "--epochs", "2"),
    ):
        assert call() == 2
        assert "--imports" in capsys.readouterr().err
    assert own_module() == 1  # what a file names is never imported
    infer.main([*command.split()[:4], *source, "--out", "masks"])
    assert len(list(Path("masks/mask/images").iterdir())) == 4
    assert own_module() == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_module_here", "--imports: there is no module no_module_here, neither installed nor in"),
        ("my_parts.inner", "--imports: there is no module my_parts.inner"),
        ("./my_parts.py", "--imports takes names of modules, such as mymodule, got './my_parts.py'"),
    ],
)
def test_a_module_that_does_not_exist_is_named(own_module, capsys, name, message):
    assert fails(infer, "--imports", name) == 2
    assert message in capsys.readouterr().err


def test_an_error_in_a_module_of_ones_own_keeps_its_own_words(own_module):
    Path("broken.py").write_text("import something_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="something_that_is_missing"):
        infer.main(["--imports", "broken"])
