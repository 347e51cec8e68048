import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from segkit.cli import evaluate
from segkit.data import CocoSegmentation
from segkit.inference import Predictor
from segkit.metrics import ConfusionMatrix
from segkit.models import create_model, load_model, save_model
from segkit.workflows.evaluate import describe_difference

NAMES = ("background", "square", "disc")


def save(file, *, seed=3, names=NAMES):
    torch.manual_seed(seed)
    options = {"pyramid_channels": 16, "channels": 16}
    made = create_model("fpn", backbone="mobilenetv3_small_100", class_names=names, pretrained=False, **options)
    torch.nn.init.normal_(made.head.weight, std=3)
    save_model(made.eval(), file)
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model with random weights, and one that predicts background everywhere, which is mostly right."""
    folder = tmp_path_factory.mktemp("evaluated")
    random = save(folder / "random.safetensors")
    constant = load_model(random)
    torch.nn.init.zeros_(constant.head.weight)
    with torch.no_grad():
        constant.head.bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
    save_model(constant, folder / "constant.safetensors")
    return random, folder / "constant.safetensors"


def run(model, data, out, *more):
    words = ["--weights", model, "--data", data, "--out", out, "--device", "cpu", "--mask-cache", "off", *more]
    evaluate.main([str(word) for word in words])


def fails(*arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return stop.value.code


def table(file):
    return list(csv.DictReader(file.open()))


def test_the_scores_are_those_of_the_confusion_matrix(models, shapes, tmp_path, capsys):
    run(models[0], shapes[1], tmp_path / "o")
    data, predictor, confusion = CocoSegmentation(shapes[1]), Predictor(load_model(models[0])), ConfusionMatrix(3)
    for image, target in data:
        confusion.update(predictor(image).mask, target)
    expected = confusion.compute()
    scores = json.loads((tmp_path / "o/scores.json").read_text())
    assert scores["miou"] == pytest.approx(expected.miou)
    assert scores["miou_low"] <= scores["miou"] <= scores["miou_high"]
    rows = table(tmp_path / "o/classes.csv")
    assert [row["class"] for row in rows] == list(NAMES)
    for name in ("iou", "dice", "precision", "recall"):
        written = [float(row[name] or "nan") for row in rows]
        assert np.allclose(written, getattr(expected, name), atol=1e-6, equal_nan=True)
    assert [int(row["support"]) for row in rows] == expected.support.tolist()
    assert f"mIoU {100 * expected.miou:.2f} [" in capsys.readouterr().out


def test_each_image_has_a_row_and_the_worst_ones_are_drawn(models, shapes, tmp_path):
    run(models[0], shapes[1], tmp_path / "o", "--worst", 3)
    rows = table(tmp_path / "o/images.csv")
    assert [row["image"] for row in rows] == [f"images/val{i}.png" for i in range(4)]
    assert float(rows[0]["miou"]) == pytest.approx(np.mean([float(rows[0][f"iou/{name}"]) for name in NAMES]), abs=1e-5)
    with Image.open(tmp_path / "o/worst.png") as picture:
        assert picture.width == 3 * 260 + 4
        assert picture.height > 3 * 192


def test_without_weights_the_newest_run_is_scored(models, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/train1").mkdir(parents=True)
    shutil.copy(models[0], tmp_path / "runs/train1/best.safetensors")
    evaluate.main([*("--data", str(shapes[1]), "--out", "o", "--device", "cpu", "--mask-cache", "off")])
    assert json.loads((tmp_path / "o/scores.json").read_text())["weights"] == ["runs/train1"]


def test_a_model_compared_with_itself_has_no_differences(models, shapes, tmp_path, capsys):
    run(models[0], shapes[1], tmp_path / "o", "--compare", models[0])
    for row in table(tmp_path / "o/differences.csv"):
        assert [float(row[name]) for name in ("difference", "low", "high")] == [0, 0, 0]
    assert "of 4 images, 0 got worse and 0 better" in capsys.readouterr().out
    assert not (tmp_path / "o/regressions.png").exists()


def test_the_better_model_wins_and_regressions_are_drawn(models, shapes, tmp_path, capsys):
    run(models[0], shapes[1], tmp_path / "worse", "--compare", models[1])
    run(models[1], shapes[1], tmp_path / "better", "--compare", models[0])
    lost, won = ({r["class"]: r for r in table(tmp_path / x / "differences.csv")} for x in ("worse", "better"))
    assert float(won["background"]["low"]) > 0
    assert float(lost["background"]["high"]) < 0
    assert float(won["mIoU"]["difference"]) == pytest.approx(-float(lost["mIoU"]["difference"]), abs=1e-6)
    row = table(tmp_path / "worse/images.csv")[0]
    assert float(row["difference"]) == pytest.approx(float(row["miou"]) - float(row["compare_miou"]), abs=2e-6)
    assert "worse" in capsys.readouterr().out
    with Image.open(tmp_path / "worse/regressions.png") as picture:
        assert picture.width == 4 * 260 + 4


def test_every_column_of_the_differences_has_a_name_and_every_class_a_verdict():
    rows = [
        {"class": name, "difference": (low + high) / 2, "low": low, "high": high}
        for name, low, high in (
            ("can", 0.01, 0.03),
            ("box", -0.03, -0.01),
            ("lid", -0.01, 0.03),
            ("cup", *[math.nan] * 2),
        )
    ]
    header, *lines = describe_difference(rows).splitlines()
    assert header.split() == ["class", "IoU", "difference", "95", "%", "of", "resamples", "verdict"]
    assert [line.split()[-1] for line in lines] == ["better", "worse", "unsure", "-"]
    assert all(line == line.rstrip() for line in (header, *lines))


def test_ignored_classes_have_no_score(models, shapes, tmp_path):
    run(models[0], shapes[1], tmp_path / "o", "--ignore-classes", "disc")
    rows = table(tmp_path / "o/classes.csv")
    assert rows[2]["iou"] == ""
    assert rows[2]["support"] == "0"
    scores = json.loads((tmp_path / "o/scores.json").read_text())
    assert scores["miou"] == pytest.approx(np.mean([float(row["iou"]) for row in rows[:2]]), abs=1e-6)


def test_an_image_that_cannot_be_read_ends_the_evaluation(models, shapes, tmp_path, capsys):
    shutil.copytree(shapes[1].parent / "images", tmp_path / "in/images")
    shutil.copy(shapes[1], tmp_path / "in/val.json")
    file = tmp_path / "in/images/val2.png"
    file.write_bytes(file.read_bytes()[:400])  # its header is whole
    assert fails(models[0], tmp_path / "in/val.json", tmp_path / "o") == 3
    assert "val2.png is damaged" in capsys.readouterr().err
    assert not (tmp_path / "o/scores.json").exists()


def test_what_cannot_be_scored_is_reported_in_one_sentence(models, shapes, tmp_path, capsys):
    other = save(tmp_path / "other.safetensors", names=("background", "can", "disc"))
    empty = tmp_path / "empty.json"
    categories = json.loads(shapes[1].read_text())["categories"]
    empty.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    for arguments, code, message in (
        ((other, shapes[1], tmp_path / "o"), 3, "do not match the classes can, disc: 'square' is new here"),
        ((models[0], shapes[1], tmp_path / "o", "--compare", other), 3, "the classes of"),
        ((models[0], empty, tmp_path / "o"), 3, f"--data {empty} has no images"),
        ((tmp_path / "missing", shapes[1], tmp_path / "o"), 2, "missing"),
        ((models[0], shapes[1], tmp_path / "o", "--worst", -1), 2, "--worst must be 0 or more"),
    ):
        assert fails(*arguments) == code
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()
