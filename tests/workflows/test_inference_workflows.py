"""segkit.predict, evaluate, tune and export, as another program calls them."""

import csv
import inspect
import json
import shutil
from contextlib import nullcontext
from importlib import import_module

import numpy as np
import pytest
import torch
from helpers.shapes import rectangle, write_coco
from PIL import Image

import segkit
from segkit.cli import evaluate
from segkit.config import EvaluateConfig, InferConfig, TrainConfig, TuneConfig
from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
from segkit.data.findings import DataWarning
from segkit.errors import DataError, MachineError, SegkitError, UsageError
from segkit.metrics import ConfusionMatrix
from segkit.models import create_model, load_model, save_model
from segkit.workflows.datasets import data_rules

NAMES = ("background", "square", "disc")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(3)
    options = {"pyramid_channels": 16, "channels": 16, "pretrained": False}
    model = create_model("fpn", backbone="test_resnet", class_names=NAMES, **options).eval()
    torch.nn.init.normal_(model.head.weight, std=3)
    file = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(model, file)
    return file


class Own(SegmentationDataset):
    """A data set of one's own, with the images of another one, and its masks as `change` returns them."""

    class_names = NAMES

    def __init__(self, data, change=np.asarray):
        self.data, self.change = data, change

    def __len__(self):
        return len(self.data)

    def image(self, index):
        return self.data.image(index)

    def mask(self, index):
        return self.change(self.data.mask(index))


@pytest.mark.parametrize(("workflow", "options"), [(segkit.evaluate, {}), (segkit.tune, {"folds": 2})])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: np.where(mask == 1, 7, mask), "image 0 has the label 7, expected 0 to 2, or 255"),
        (lambda mask: mask.astype(float), "must be integers .* float64"),
        (lambda mask: mask[..., None], "must be integers"),
    ],
)
def test_labels_that_are_no_classes_are_an_error_instead_of_skipped(
    file, shapes, tmp_path, workflow, options, change, message
):
    data = Own(CocoSegmentation(shapes[1]), change)
    with pytest.raises(DataError, match=message):
        workflow(weights=file, data=data, out=tmp_path / "o", device="cpu", **options)


@pytest.mark.parametrize(
    ("workflow", "config"),
    [(segkit.predict, InferConfig), (segkit.evaluate, EvaluateConfig), (segkit.tune, TuneConfig)],
)
def test_a_workflow_takes_the_settings_of_its_command(workflow, config):
    defaults = {name: p.default for name, p in inspect.signature(workflow).parameters.items()}
    assert defaults.pop("verbose") is False
    expected = config(data=("x",)) if "data" in defaults else config()
    assert {**defaults, **({"data": ("x",)} if "data" in defaults else {})} == vars(expected)


def test_predict_returns_what_it_writes_and_prints_nothing(file, shapes, tmp_path, capfd):
    result = segkit.predict(weights=str(file), source=shapes[1], out=str(tmp_path / "o"), save="mask", device="cpu")
    assert result.folder == tmp_path / "o"
    assert [row["image"] for row in result.rows] == [f"images/val{i}.png" for i in range(4)]
    assert result.failures == []
    mask = np.asarray(Image.open(result.folder / result.rows[1]["mask"]))
    photo = shapes[1].parent / "images/val1.png"
    assert (mask == load_model(file).predict(photo).mask).mean() > 0.999
    assert capfd.readouterr() == ("", "")


def test_predict_returns_the_images_that_cannot_be_read(file, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "in/good.png")
    (tmp_path / "in/bad.jpg").write_text("no image")
    result = segkit.predict(weights=file, source=tmp_path / "in", out=tmp_path / "o", device="cpu")
    assert [row["image"] for row in result.rows] == ["good.png"]
    ((image, error),) = result.failures
    assert image == "bad.jpg"
    assert "bad.jpg is not an image" in error


def test_a_loaded_model_predicts_as_its_file_does_and_stays_as_it_is(file, shapes, tmp_path):
    model = load_model(file).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"source": shapes[1], "save": "mask", "device": "cpu"}
    one = segkit.predict(weights=[model, model], member_weights=(1, 3), out=tmp_path / "a", **options)
    other = segkit.predict(weights=file, out=tmp_path / "b", **options)
    for row in one.rows:
        assert (one.folder / row["mask"]).read_bytes() == (other.folder / row["mask"]).read_bytes()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batches_change_neither_masks_nor_scores(file, shapes, tmp_path):
    options = {"weights": file, "device": "cpu", "flips": "h"}
    source, masks, scores = shapes[1], [], []
    for batch_size in (1, 3):
        out = tmp_path / str(batch_size)
        found = segkit.predict(**options, source=source, out=out, save="mask", batch_size=batch_size)
        masks.append([np.array(Image.open(found.folder / row["mask"])) for row in found.rows])
        # Another batch size may continue there.
        segkit.predict(**options, source=source, out=out, save="mask", batch_size=4, skip_existing=True)
        evaluated = segkit.evaluate(
            **options, data=shapes[1], out=tmp_path / f"e{batch_size}", batch_size=batch_size, worst=0
        )
        scores.append(evaluated.scores)
    assert len(masks[0]) > 3
    assert np.mean([np.mean(a == b) for a, b in zip(*masks, strict=True)]) > 0.999
    assert scores[0] == pytest.approx(scores[1], abs=1e-3, nan_ok=True)
    with pytest.raises(UsageError, match="`batch_size` must be at least 1, or auto, got 0"):
        segkit.predict(**options, source=source, batch_size=0)


def test_evaluate_scores_a_data_set_of_ones_own(file, shapes, tmp_path, capfd):
    data = CocoSegmentation(shapes[1])
    result = segkit.evaluate(weights=load_model(file), data=Own(data), out=tmp_path / "o", device="cpu")
    confusion = ConfusionMatrix(3)
    for image, target in data:
        confusion.update(load_model(file).predict(image).mask, target)
    expected = confusion.compute()
    assert result.scores["miou"] == pytest.approx(expected.miou, abs=1e-4)
    assert list(result.iou) == list(NAMES)
    assert list(result.iou.values()) == pytest.approx(expected.iou.tolist(), abs=1e-4)
    for name, value in {**result.iou, "miou": result.scores["miou"]}.items():
        low, high = result.intervals[name]
        assert low <= value <= high
    assert len(result.images) == 4
    assert result.differences == []
    scores = json.loads((result.folder / "scores.json").read_text())
    assert (scores["weights"], scores["data"]) == (["model 1"], ["Own"])
    assert scores["miou"] == result.scores["miou"]
    assert capfd.readouterr() == ("", "")


def write_discs(shapes, other, *more):
    """Write the validation JSON with the category disc under another id, without square and with `more` names."""
    content = json.loads(shapes[1].read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(("disc", *more), start=1)]
    content["annotations"] = [a | {"category_id": 1} for a in content["annotations"] if a["category_id"] == 7]
    other.write_text(json.dumps(content))
    return {"data": other, "images": shapes[1].parent, "mask_cache": "off", "device": "cpu"}


def test_evaluate_matches_categories_by_name_and_warns_of_a_missing_one(file, shapes, tmp_path):
    options = write_discs(shapes, tmp_path / "other.json")
    with pytest.warns(DataWarning, match=r"classes without a category in a JSON.*: 1 \(square\)"):
        result = segkit.evaluate(weights=file, out=tmp_path / "o", **options)
    confusion = ConfusionMatrix(3)
    for image, target in CocoSegmentation(shapes[1]):
        confusion.update(load_model(file).predict(image).mask, np.where(target == 1, 0, target))
    assert [result.iou["background"], result.iou["disc"]] == pytest.approx(confusion.compute().iou[[0, 2]].tolist())
    assert [row["support"] > 0 for row in result.classes] == [True, False, True]


@pytest.mark.parametrize("workflow", [segkit.evaluate, segkit.tune])
def test_a_category_that_the_model_lacks_is_an_error(file, shapes, tmp_path, workflow):
    options = write_discs(shapes, tmp_path / "other.json", "ball")
    with pytest.raises(DataError, match=r"other\.json do not match the classes square, disc: 'ball' is new here, 's"):
        workflow(weights=file, out=tmp_path / "o", **options)


def test_evaluate_returns_the_differences_to_another_model(file, shapes, tmp_path):
    result = segkit.evaluate(
        weights=file, compare=load_model(file), data=shapes[1], out=tmp_path / "o", mask_cache="off", device="cpu"
    )
    assert [(row["class"], row["difference"]) for row in result.differences] == [
        (name, 0.0) for name in (*NAMES, "mIoU")
    ]


def test_tune_returns_its_plan_and_its_command(file, shapes, tmp_path, capfd):
    result = segkit.tune(
        weights=file, data=CocoSegmentation(shapes[1]), folds=2, flips="none", out=tmp_path / "o", device="cpu"
    )
    content = json.loads((result.folder / "tune.json").read_text())
    assert content["command"] == result.command
    assert content["held_out_miou"] == result.held_out_miou
    assert content["gains"].keys() == result.gains.keys() == {"scales", "class bias"}
    assert list(result.plan.scales) == content["plan"]["scales"]
    assert str(file) in result.command
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda file, out: segkit.predict(weigths=file, out=out), UsageError, "did you mean 'weights'"),
        (lambda file, out: segkit.predict(weights=3, out=out), UsageError, "`weights` must be a list of paths, got 3"),
        (
            lambda file, out: segkit.predict(weights=object(), out=out),
            UsageError,
            "must be a path, a Segmenter or an OnnxModel",
        ),
        (lambda file, out: segkit.predict(weights=file, source="none", out=out), DataError, "no file or folder none"),
        (lambda file, out: segkit.evaluate(weights=file, out=out), UsageError, "`data`"),
        (
            lambda file, out: segkit.evaluate(weights=file, data=object(), out=out),
            UsageError,
            "`data` takes paths and objects",
        ),
    ],
)
def test_what_cannot_be_an_argument_is_named(file, tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(file, tmp_path / "o")
    assert not (tmp_path / "o").exists()


class Squares(Own):
    """The squares against everything else."""

    class_names = ("background", "square")

    def mask(self, index):
        return np.uint8(self.data.mask(index) == 1)


@pytest.fixture(scope="module")
def one_channel(tmp_path_factory):
    torch.manual_seed(0)
    options = {"pyramid_channels": 16, "channels": 16}
    model = create_model("fpn", backbone="test_resnet", class_names=["square"], **options).eval()
    torch.nn.init.normal_(model.head.weight, std=3)
    save_model(model, file := tmp_path_factory.mktemp("one") / "m.safetensors")
    return file


def test_one_channel_writes_masks_of_0_and_1_and_is_scored_on_both(one_channel, shapes, tmp_path):
    model, data = load_model(one_channel), Squares(CocoSegmentation(shapes[1]))
    options = {"weights": one_channel, "device": "cpu"}
    written = segkit.predict(**options, source=shapes[1].parent / "images", save=("mask", "probs"), out=tmp_path / "o")
    scored = segkit.evaluate(**options, data=data, out=tmp_path / "e")
    confusion = ConfusionMatrix(2)
    for (image, target), row in zip(data, [r for r in written.rows if "val" in r["image"]], strict=True):
        with torch.no_grad():
            expected = model(model.preprocessing(torch.from_numpy(image).permute(2, 0, 1)[None]))[0, 0] > 0
        assert (np.asarray(Image.open(written.folder / row["mask"])) == expected.numpy()).mean() > 0.999
        assert np.load(written.folder / row["probs"])["class_names"].tolist() == ["background", "square"]
        confusion.update(expected.int(), target)
    assert 0 < confusion.compute().iou[1] < 1
    assert list(scored.iou.values()) == pytest.approx(confusion.compute().iou.tolist(), abs=1e-3)
    tuned = segkit.tune(**options, data=data, folds=2, flips="h", out=tmp_path / "t")
    assert len(tuned.plan.bias) == 2


def test_predict_takes_the_tta_the_crf_and_the_device_as_objects(file, shapes, tmp_path):
    options = {"weights": file, "source": shapes[1].parent / "images/val0.png", "save": "mask"}
    parts = {"tta": segkit.TTA(flips="h"), "crf": segkit.DenseCRF(iterations=1), "device": torch.device("cpu")}
    one = segkit.predict(**options, **parts, out=tmp_path / "a")
    other = segkit.predict(**options, flips="h", crf="iterations=1", device="cpu", out=tmp_path / "b")
    for row in one.rows:
        assert (one.folder / row["mask"]).read_bytes() == (other.folder / row["mask"]).read_bytes()
    for name, value in (("crf", object()), ("tta", object())):
        with pytest.raises(UsageError, match=f"`{name}` must be a "):
            segkit.predict(**options, **{name: value}, device="cpu", out=tmp_path / "c")


def test_export_takes_a_loaded_model_with_the_file_to_write(file):
    with pytest.raises(UsageError, match="give `onnx`, the file to write"):
        segkit.export(load_model(file))
    with pytest.raises(UsageError, match="`model` must be a path or a Segmenter, got int"):
        segkit.export(3)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("workflow", [segkit.predict, segkit.evaluate])
def test_the_workers_of_a_crf_end_with_the_command(workflow, file, shapes, tmp_path, fails):
    closed = []

    class Watched(segkit.DenseCRF):
        def submit(self, probs, image):
            if fails:
                raise MachineError("a worker died")
            return super().submit(probs, image)

        def close(self):
            closed.append(True)
            super().close()

    files = {"source": shapes[1]} if workflow is segkit.predict else {"data": shapes[1]}
    with pytest.raises(MachineError) if fails else nullcontext():
        workflow(weights=file, out=tmp_path / "a", crf=Watched(), device="cpu", **files)
    assert closed


@pytest.fixture
def overlapping(tmp_path):
    """A photograph of 32 x 32 pixels, all in an object of class 1; one of class 2 with 100 pixels comes first."""
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(tmp_path / "a.png")
    squares = [(7, 10), (3, 32)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": category, "segmentation": [rectangle(0, 0, side, side)]}
        for i, (category, side) in enumerate(squares)
    ]
    return write_coco(tmp_path / "a.json", [{"id": 1, "file_name": "a.png", "height": 32, "width": 32}], annotations)


def support(weights, data, out, **options):
    result = segkit.evaluate(weights=weights, data=data, out=out, device="cpu", mask_cache="off", **options)
    return [row["support"] for row in result.classes]


def with_rules(file, path, **rules):
    model = load_model(file)
    model.data_rules = rules
    save_model(model, path)
    return path


def test_labels_are_made_by_the_rules_of_the_models_training(file, overlapping, tmp_path, caplog):
    last = with_rules(file, tmp_path / "last.safetensors", overlap="last", ignore_classes=["disc"])
    assert support(file, overlapping, tmp_path / "1") == [0, 924, 100]  # the smallest object is on top
    assert support(last, overlapping, tmp_path / "2") == [0, 1024, 0]
    assert support(load_model(last), overlapping, tmp_path / "3") == [0, 1024, 0]
    assert not caplog.messages
    evaluate.main([f"--{k}={v}" for k, v in (("weights", last), ("data", overlapping), ("out", tmp_path / "4"))])
    rows = list(csv.DictReader((tmp_path / "4" / "classes.csv").open()))
    assert [(row["class"], row["support"]) for row in rows] == [("background", "0"), ("square", "1024"), ("disc", "0")]


def test_other_rules_than_those_of_the_training_are_told(file, overlapping, tmp_path, caplog):
    last = with_rules(file, tmp_path / "last.safetensors", overlap="last", ignore_classes=["disc"])
    given = {"overlap": "smallest", "ignore_classes": ()}
    assert support(last, overlapping, tmp_path / "1", **given) == [0, 924, 100]
    assert caplog.messages == [
        f"`overlap` is smallest, but {last} was trained with last",
        f"`ignore_classes` is none, but {last} was trained with disc",
    ]
    caplog.clear()
    assert support(file, overlapping, tmp_path / "2", compare=last) == [0, 924, 100]
    assert len(caplog.messages) == 2


def test_no_name_of_a_class_or_an_image_hides_another_value(file, overlapping, tmp_path):
    (tmp_path / "other").mkdir()
    content = overlapping.read_text().replace('"square"', '"miou"')
    overlapping.write_text(content)
    (tmp_path / "other" / "a.json").write_text(content)
    shutil.copy(tmp_path / "a.png", tmp_path / "other")
    model = load_model(file)
    model.class_names = ("background", "miou", "disc")
    files = (overlapping, tmp_path / "other" / "a.json")
    result = segkit.evaluate(weights=model, data=files, out=tmp_path / "1", device="cpu", mask_cache="off")
    assert [row["image"] for row in result.images] == [str(tmp_path / "a.png"), str(tmp_path / "other" / "a.png")]
    of_class = result.classes[1]
    assert of_class["class"] == "miou"
    assert result.intervals["miou"] == (of_class["iou_low"], of_class["iou_high"])
    assert result.scores["miou_low"] != of_class["iou_low"]


@pytest.fixture
def indexed(tmp_path):
    """A photograph with an index mask: 900 pixels of the index 2 in red, and 124 of the index 1 in blue."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(tmp_path / "images" / "a.png")
    indices = np.full((32, 32), 1, np.uint8)
    indices[:30, :30] = 2
    mask = Image.fromarray(indices)
    mask.putpalette([0, 0, 0, 0, 0, 200, 200, 0, 0])
    mask.save(tmp_path / "masks" / "a.png")
    return {"data": tmp_path / "images", "masks": tmp_path / "masks"}


def test_masks_are_read_by_the_palette_of_the_models_training(file, indexed, tmp_path, capsys, caplog):
    (tmp_path / "palette.txt").write_text("square 200 0 0\ndisc 0 0 200\n")
    (tmp_path / "other.txt").write_text("disc 200 0 0\nsquare 0 0 200\n")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    train = {"class_names": tmp_path / "names.txt", "palette": tmp_path / "palette.txt"}
    config = TrainConfig(data=(indexed["data"],), masks=(indexed["masks"],), **train)
    rules = data_rules(config, FolderSegmentation(*indexed.values(), **train))
    trained = with_rules(file, tmp_path / "m.safetensors", **rules)
    (tmp_path / "palette.txt").unlink()
    assert support(trained, out=tmp_path / "1", verbose=True, **indexed) == [0, 900, 124]
    assert "rules  palette of the training" in capsys.readouterr().out
    assert not caplog.messages
    told = f"`masks` are not read by the palette of the masks that {trained} was trained with"
    other = {"class_names": tmp_path / "names.txt", "palette": tmp_path / "other.txt"}
    assert support(trained, out=tmp_path / "2", **indexed, **other) == [0, 124, 900]
    assert caplog.messages == [told]
    assert support(file, out=tmp_path / "3", compare=trained, **indexed) == [0, 124, 900]  # by the indices
    assert caplog.messages == [told] * 2


@pytest.mark.parametrize("stored", [3, [["square", 1, 2]], [["square", 0, 0, "red"]], []])
def test_a_damaged_palette_of_a_model_is_one_sentence(file, indexed, tmp_path, stored):
    damaged = with_rules(file, tmp_path / "m.safetensors", mask_colours=stored)
    with pytest.raises(SegkitError, match=r"the header of .*m\.safetensors"):
        support(damaged, out=tmp_path / "1", **indexed)


@pytest.mark.parametrize("command", ["evaluate", "tune", "infer"])
def test_every_command_that_predicts_takes_the_rules_of_the_model(file, overlapping, tmp_path, command, capsys):
    path = with_rules(file, tmp_path / "m.safetensors", overlap="last", exif="ignore", bbox_as_mask=True)
    data = ["--source", "a.jpg"] if command == "infer" else ["--data", str(overlapping), "--no-bbox-as-mask"]
    with pytest.raises(SystemExit):
        import_module(f"segkit.cli.{command}").main(["--weights", str(path), *data, "--print-config"])
    printed = capsys.readouterr().out
    assert f"exif: ignore  # model {path}" in printed
    if command != "infer":
        assert f"overlap: last  # model {path}" in printed
        assert "bbox_as_mask: false  # command line" in printed


def test_rules_that_cannot_be_are_told_with_their_file(file, tmp_path):
    path = with_rules(file, tmp_path / "m.safetensors", overlap="newest")
    with pytest.raises(UsageError, match=r"the header of .*m.safetensors cannot be used: `overlap` must be"):
        segkit.evaluate(weights=path, data="a.json")


def test_masks_have_the_classes_of_the_model(file, tmp_path):
    for name, picture in (
        ("i", np.zeros((16, 16, 3), np.uint8)),
        ("m", np.repeat(np.uint8([0, 2]), 128).reshape(16, 16)),
    ):
        (tmp_path / name).mkdir()
        Image.fromarray(picture).save(tmp_path / name / "a.png")
    assert support(file, tmp_path / "i", tmp_path / "out", masks=tmp_path / "m") == [128, 0, 128]
