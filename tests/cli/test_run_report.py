"""The report of a run, through the command: pictures, page, env.json."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fails, train_arguments
from PIL import Image

from segkit.cli import train
from segkit.data import CocoSegmentation
from segkit.inference import Predictor
from segkit.metrics import ConfusionMatrix
from segkit.models import load_model


def last_rows(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a <b>"
    train.main(train_arguments(shapes, out, "--epochs", "2", "--ema", "0.5"))
    return out


def test_the_confusion_matrix_is_of_the_best_model(run, shapes):
    rows = list(csv.reader((run / "confusion_matrix.csv").open()))
    assert rows[0] == ["truth", "background", "square", "disc"]
    counts = np.array([row[1:] for row in rows[1:]], dtype=np.int64)
    data, predictor, confusion = CocoSegmentation(shapes[1]), Predictor(load_model(run)), ConfusionMatrix(3)
    for image, target in data:
        confusion.update(predictor(image).mask, target)
    assert counts.sum() == 4 * 48 * 64
    assert np.abs(counts - confusion.matrix).sum() <= 4
    hits = counts.diagonal()
    miou = np.mean(hits / (counts.sum(0) + counts.sum(1) - hits))
    best = max(float(row[name]) for row in last_rows(run) for name in ("miou", "ema_miou"))
    assert miou == pytest.approx(best, abs=1e-3)


def test_the_worst_and_the_best_images_are_drawn_next_to_the_truth(run):
    for name in ("worst.png", "best.png"):
        with Image.open(run / name) as picture:
            assert picture.width == 3 * (320 + 4) + 4
            assert picture.height > 2 * 240


def test_the_page_shows_the_run(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 4
    assert page.count("data:image/png") == 1
    for text in ("a &lt;b&gt;", "Finished after 2 epochs.", "test_resnet", "python -m segkit evaluate"):
        assert text in page
    assert (run / "report.html").stat().st_size < 3e6


def test_the_page_refers_to_nothing_outside_itself(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    references = re.findall(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']?([^"'\s>]+)""", page)
    references += re.findall(r"url\(\s*[\"']?([^\"')]+)", page)
    assert references
    assert not [one for one in references if not one.startswith(("data:image/", "#"))]
    assert not re.search(r"<(script|iframe|link|object|embed|base)\b|@import|https?:", page.replace("xmlns", ""))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_a_browser_shows_the_page(run, tmp_path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--window-size=1200,3000", f"--screenshot={tmp_path / 'page.png'}", "--enable-logging=stderr"]
    address = (run / "report.html").resolve().as_uri()
    result = subprocess.run([BROWSER, *options, address], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in result.stderr  # the log has the errors of a page
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (3000, 1200, 3)
    used = (pixels != pixels[-1, -1]).any(2).any(1)
    assert used.mean() > 0.3  # rows with more than the background
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # there are photographs


def test_env_json_has_no_environment_variables(run):
    content = json.loads((run / "env.json").read_text())
    assert {"started", "command", "segkit", "python", "torch", "timm", "device"} <= set(content)
    assert "PATH" not in json.dumps(content)


@pytest.mark.slow
def test_the_command_on_the_page_trains_on_after_early_stopping(shapes, tmp_path, capsys):
    out = tmp_path / "a"
    train.main(train_arguments(shapes, out, "--epochs", "2", "--early-stopping", "1"))
    command = re.search(r"python train\.py (--resume [^<]*)", (out / "report.html").read_text()).group(1)
    assert command.endswith("--epochs 4 --early-stopping 2")
    capsys.readouterr()
    train.main(shlex.split(command))
    assert "resuming" in capsys.readouterr().out


def test_pictures_that_cannot_be_drawn_do_not_stop_a_training(shapes, tmp_path, monkeypatch, caplog):
    replace = os.replace

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    def full_for_the_page(source, target):
        return full() if Path(target).name == "report.html" else replace(source, target)

    for name in ("gallery_picture", "batch_picture"):  # no fault from outside makes them fail while they draw
        monkeypatch.setattr(f"segkit.report.run.{name}", full)
    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(os, "replace", full_for_the_page)
    out = tmp_path / "a"
    train.main(train_arguments(shapes, out, "--epochs", "2"))
    warned = [record.getMessage() for record in caplog.records]
    assert f"{out / 'curves.png'} is skipped: No space left on device" in warned
    assert len(last_rows(out)) == 2
    assert (out / "confusion_matrix.csv").is_file()
    assert not [path for path in out.iterdir() if path.suffix in (".html", ".png")]


@pytest.mark.slow
def test_a_training_needs_no_matplotlib(shapes, tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise AttributeError('_ARRAY_API not found')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "segkit", "train", *train_arguments(shapes, tmp_path / "a", "--epochs", "2")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("matplotlib cannot be imported: _ARRAY_API not found") == 1
    assert (tmp_path / "a" / "val_predictions.png").is_file()


def test_a_logger_without_its_package_is_one_line(shapes, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "1", "--log", "wandb"))
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("segkit")]
    assert [text.split(":")[0] for text in warned] == ["`log=wandb` is off"]
    assert len(last_rows(tmp_path / "a")) == 1
    assert fails(train, *train_arguments(shapes, tmp_path / "b", "--log", "comet")) == 2


def test_a_single_validation_image_is_the_worst_and_the_best(tmp_path, shapes):
    content = json.loads(shapes[1].read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    one = tmp_path / "one.json"
    one.write_text(json.dumps(content))
    images = ["--images", str(shapes[0].parent)]
    train.main(train_arguments((shapes[0], one), tmp_path / "a", "--epochs", "1", *images))
    assert (tmp_path / "a/worst.png").read_bytes() == (tmp_path / "a/best.png").read_bytes()
