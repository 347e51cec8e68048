"""segkit.train: the command as a function of keywords, for files and for data sets of one's own."""

import inspect
import json
import random
import re
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers.commands import fails, signal_at_batch, train_arguments
from helpers.tiny_training import NAMES, Drawn
from PIL import Image

import segkit
from segkit.cli import train
from segkit.config import TrainConfig, from_keywords
from segkit.console import Console
from segkit.errors import DataError, DataWarning, UsageError
from segkit.inference import Predictor
from segkit.metrics import ConfusionMatrix
from segkit.models import create_model, save_model
from segkit.runs import RunFolder
from segkit.sliding_window import SlidingWindow
from segkit.training import Interrupted, Ranks
from segkit.training_scale import TrainingScale
from segkit.workflows import datasets, parts
from segkit.workflows import train as workflow
from segkit.workflows.crossval import CrossValidationResult
from segkit.workflows.datasets import load_data
from segkit.workflows.parts import build_model, check_batch_memory
from segkit.workflows.run import score_best

SETTINGS = {
    **{"model": "fpn", "backbone": "test_resnet", "pretrained": "false", "crop": 48},
    **{"decoder": {"pyramid_channels": 16, "channels": 16}, "augment": "none", "loss": {"ce": 0.6, "dice": 0.4}},
    **{"batch_size": 4, "lr": 3e-3, "workers": 0, "device": "cpu", "mask_cache": "off"},
}


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


@pytest.fixture(scope="module")
def out(shapes, tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "a"


@pytest.fixture(scope="module")
def result(shapes, out):
    return segkit.train(data=str(shapes[0]), val=[shapes[1]], out=str(out), epochs=1, **SETTINGS)


def test_the_result_says_what_was_reached_and_loads_the_best_model(result, out):
    assert result.folder.path == out
    assert result.class_names == ("background", "square", "disc")
    assert [row["epoch"] for row in result.history] == [1]
    assert (result.best_epoch, result.best_miou) == (1, result.history[0]["miou"])
    assert not result.was_finished
    assert result.load().class_names == result.class_names
    assert result.load().category_ids == {"square": 3, "disc": 7}
    assert repr(result).startswith(f"TrainResult(folder=RunFolder({str(out)!r}), best_miou=0.")
    assert "train_loss" not in repr(result)
    with pytest.raises(AttributeError):
        result.best_epoch = 2


@pytest.mark.slow
def test_a_fold_that_began_by_the_earlier_rule_is_resumed_on_its_own_images(shapes, tmp_path, monkeypatch):
    rules = []

    def watched(*args, fold_rule):
        rules.append(fold_rule)
        return datasets.load_data(*args, fold_rule=fold_rule)

    monkeypatch.setattr(workflow, "load_data", watched)
    options = {"data": shapes[0], "folds": 3, "fold": 1, **SETTINGS}
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "RULE", 1)  # as in the earlier version
        segkit.train(out=tmp_path / "a", epochs=1, **options)
    assert not torch.load(tmp_path / "a/last.pt")["data"]["train"].endswith("folds 1"), "as in earlier checkpoints"
    segkit.train(resume=tmp_path / "a", epochs=2, **options)
    assert rules == [1, 1]


def test_a_json_with_a_category_called_background_trains_and_is_described(shapes, tmp_path, capsys):
    content = json.loads(shapes[0].read_text())
    content["categories"].append({"id": 9, "name": "Background"})
    file = shapes[0].with_name("with_background.json")
    file.write_text(json.dumps(content))
    result = segkit.train(data=file, val=shapes[1], out=tmp_path / "a", epochs=1, verbose=True, **SETTINGS)
    assert result.class_names == ("background", "square", "disc")
    assert "labels 1 square (category 3), 2 disc (category 7), 0 background (category 9)\n" in capsys.readouterr().out


def test_it_trains_as_the_command_does(result, shapes, out, tmp_path):
    train.main(train_arguments(shapes, tmp_path / "b", "--epochs", "1"))
    other = weights(tmp_path / "b")
    assert all(torch.equal(value, other[name]) for name, value in weights(out).items())
    first, second = (yaml.safe_load((folder / "args.yaml").read_text()) for folder in (out, tmp_path / "b"))
    assert {name for name in first if first[name] != second[name]} == {"out"}


def test_it_prints_only_if_it_is_asked_to(shapes, tmp_path, capsys):
    own = {"data": Drawn(4), "val": Drawn(2), "epochs": 1, **SETTINGS}
    segkit.train(**own, out=tmp_path / "a")
    assert capsys.readouterr().out == ""
    segkit.train(**own, out=tmp_path / "b", verbose=True)
    printed = capsys.readouterr().out
    assert "4 training and 2 validation images" in printed
    assert re.search(r"^cores  \d+: 1 thread to compute, images are loaded in between$", printed, re.MULTILINE)


def test_without_val_a_share_of_an_own_data_set_is_split_off(tmp_path, capsys):
    result = segkit.train(data=Drawn(8), val_fraction=0.25, out=tmp_path / "a", epochs=1, verbose=True, **SETTINGS)
    assert result.class_names == NAMES
    assert "6 training and 2 validation images" in capsys.readouterr().out


def test_the_random_states_of_the_program_stay(tmp_path):
    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: E731, NPY002
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    segkit.train(data=Drawn(4), val=Drawn(2), out=tmp_path / "a", epochs=1, **SETTINGS)
    assert draw() == expected


def test_a_list_of_one_own_data_set_is_that_data_set(tmp_path):
    result = segkit.train(data=[Drawn(4)], val=(Drawn(2),), out=tmp_path / "a", epochs=1, **SETTINGS)
    assert result.class_names == NAMES


def test_a_resumed_run_has_the_settings_of_its_folder(result, out, tmp_path):
    folder = shutil.copytree(out, tmp_path / "a")
    longer = segkit.train(resume=str(folder), epochs=2)
    assert len(longer.history) == 2
    again = segkit.train(out=tmp_path / "a", resume="auto", epochs=2)
    assert again.was_finished
    assert again.history == longer.history
    with pytest.raises(UsageError, match=r"`lr` was 0\.003, is 0\.5"):
        segkit.train(resume=tmp_path / "a", epochs=3, lr=0.5)


def test_an_own_data_set_with_other_images_cannot_be_resumed(tmp_path):
    first = segkit.train(data=Drawn(4), val=Drawn(2), out=tmp_path / "a", epochs=1, **SETTINGS)
    with pytest.raises(UsageError, match="have changed since the run began"):
        segkit.train(data=Drawn(5), val=Drawn(2), resume=first.folder.path, epochs=2)
    assert len(segkit.train(data=Drawn(4), val=Drawn(2), resume=first.folder.path, epochs=2).history) == 2
    with pytest.raises(UsageError, match="was trained on the data sets of a program, not on files"):
        segkit.train(resume=first.folder.path, epochs=3)


def test_a_run_to_resume_may_be_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sets = {"data": Drawn(4), "val": Drawn(2)}
    segkit.train(**sets, out="~/a", epochs=1, **SETTINGS)
    assert len(segkit.train(**sets, resume="~/a", epochs=2).history) == 2
    assert segkit.train(**sets, out="~/a", resume="auto", epochs=2).was_finished


def test_keywords_win_over_the_recipe_that_they_name(shapes, tmp_path):
    segkit.train(data=shapes[0], val=shapes[1], out=tmp_path / "a", recipe="demo", **SETTINGS | {"epochs": 1})
    written = yaml.safe_load((tmp_path / "a" / "args.yaml").read_text())
    assert (written["recipe"], written["epochs"], written["crop"]) == ("demo", 1, 48)
    assert written["warmup_epochs"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown argument 'epoch'; did you mean 'epochs'"),
        ({"recipe": "fastest"}, "unknown recipe 'fastest'"),
        ({"recipe": Path("mine.yaml")}, "there is no file mine.yaml"),
        ({"data": object(), "val": Drawn(4)}, "`data` takes paths or a SegmentationDataset, got a object"),
        ({"init_from": torch.nn.ReLU()}, "`init_from` must be a path or a Segmenter, got a ReLU"),
        ({"recipe": 3}, "`recipe` must be text"),
        ({"resume": None}, "`resume` must be .*, got None"),
        ({"data": []}, "`data` is empty"),
        ({"data": None}, "`data` is empty"),
        ({"epochs": "many"}, "`epochs` must be a whole number, got 'many'"),
        ({"data": Drawn(4), "val": "val.json"}, "all as files, or all as data sets"),
        ({"val": Drawn(4)}, "all as files, or all as data sets"),
        ({"data": Drawn(4), "train_only": "pseudo.json"}, "all as files, or all as data sets"),
        ({"data": Drawn(4), "folds": 2, "fold": "all"}, "`folds` divides files; divide your own data set"),
        ({"data": Drawn(4), "folds": 2, "fold": 0}, "`folds`"),
        ({"data": "train.json", "resume": True}, "`resume` needs `out`"),
        ({"resume": "nowhere"}, "nothing to resume: there is no nowhere/last.pt"),
    ],
)
def test_a_keyword_that_cannot_be_is_an_error(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        segkit.train(**settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", lambda image: image[..., 0], r"images of `val` must be arrays .* got \(32, 40\) uint8"),
        ("images", lambda image: image / 255, "float64"),
        ("images", lambda image: torch.from_numpy(image), "got Tensor"),
        ("masks", lambda mask: mask[::2], r"labels of image 0 must be integers \(32, 40\), got \(16, 40\)"),
        ("masks", lambda mask: mask > 0, "bool"),
        ("masks", lambda mask: mask + 3, "image 0 has the label 3, expected 0 to 2"),
        ("masks", lambda mask: mask.tolist(), "got list"),
    ],
)
def test_an_own_data_set_is_checked_before_it_trains(tmp_path, part, change, message):
    val = Drawn(2)
    setattr(val, part, [change(array) for array in getattr(val, part)])
    with pytest.raises(DataError, match=message):
        segkit.train(data=Drawn(4), val=val, out=tmp_path / "a", epochs=1, **SETTINGS)
    assert not (tmp_path / "a").exists()


def test_black_and_white_masks_of_an_own_data_set_are_warned_of():
    """255 is ignored, so the loss would be 0, and the mIoU 100 %."""
    data = Drawn(3)
    data.masks = [np.uint8(255) * (mask > 0) for mask in data.masks]
    with pytest.warns(DataWarning, match="the first 3 masks of `data` have no values except 0 and 255"):
        load_data(from_keywords(TrainConfig, {"data": data, "val": Drawn(2)}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((0, 1, 2), "class names of `data` must be text"),
        (("background", "a", "a"), "two classes of the same name"),
        (("a",), r"`data` has only the classes \[.a.\], so there is nothing to learn"),
        (tuple(map(str, range(256))), "has 256 classes; a mask of uint8 holds 255"),
    ],
)
def test_class_names_of_an_own_data_set_are_checked(tmp_path, names, message):
    data = Drawn(4)
    data.class_names = names
    with pytest.raises(DataError, match=message):
        segkit.train(data=data, out=tmp_path / "a", epochs=1, **SETTINGS)


def test_the_signature_shows_the_settings_with_their_defaults():
    parameters = inspect.signature(segkit.train).parameters
    assert (parameters["epochs"].default, parameters["lr"].default, parameters["verbose"].default) == (40, 3e-4, False)
    assert "data" in parameters


def test_the_arguments_of_another_program_are_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--token", "secret"])
    segkit.train(data=Drawn(4), val=Drawn(2), out=tmp_path / "a", epochs=1, **SETTINGS)
    text = (tmp_path / "a" / "env.json").read_text()
    assert "secret" not in text
    assert "torch" in json.loads(text)


@pytest.mark.slow
def test_only_the_command_changes_how_the_process_keeps_memory(shapes, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("segkit.workflows.run.keep_memory", lambda: calls.append(1))
    segkit.train(data=Drawn(4), val=Drawn(2), out=tmp_path / "a", epochs=1, **SETTINGS)
    assert calls == []
    train.main(train_arguments(shapes, tmp_path / "b", "--epochs", "1"))
    assert calls == [1]


def test_ctrl_c_is_an_error_that_names_the_run_to_resume(tmp_path):
    with signal_at_batch(0), pytest.raises(Interrupted, match="stopped by SIGINT") as stop:
        segkit.train(data=Drawn(8), val=Drawn(2), out=tmp_path / "a", epochs=2, **SETTINGS)
    assert stop.value.run == tmp_path / "a"
    assert len(segkit.train(data=Drawn(8), val=Drawn(2), resume=stop.value.run).history) == 2


@pytest.mark.slow
def test_all_folds_are_one_call(shapes, tmp_path):
    result = segkit.train(data=shapes[0], folds=2, fold="all", out=tmp_path / "a", epochs=1, **SETTINGS)
    assert isinstance(result, CrossValidationResult)
    assert [fold.folder.path.name for fold in result.folds] == ["fold0", "fold1"]
    assert [row["fold"] for row in result.summary] == ["0", "1", "mean", "sd"]
    again = segkit.train(resume=tmp_path / "a")
    assert again.was_finished
    assert again.summary == result.summary


def test_the_function_of_before_trains_on_what_it_loads(tmp_path):
    config = from_keywords(TrainConfig, {**SETTINGS, "data": "ignored.json", "epochs": 1, "out": tmp_path / "a"})
    assert train.train(config, load=lambda config: (Drawn(4), Drawn(2))) == tmp_path / "a"
    assert (tmp_path / "a" / "best.safetensors").is_file()


def test_init_from_takes_a_loaded_model_and_does_not_change_it(result, tmp_path):
    options = {**SETTINGS, "epochs": 1, "data": Drawn(4), "val": Drawn(2), "lr": 1e-9, "warmup_epochs": 0}
    for name in ("model", "backbone", "decoder"):
        options.pop(name)
    model = result.load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segkit.train(**options, init_from=model, out=tmp_path / "a")
    trained = weights(tmp_path / "a")
    for name, value in model.named_parameters():  # with this learning rate they hardly move
        torch.testing.assert_close(trained[name], value.detach(), atol=1e-6, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert yaml.safe_load((tmp_path / "a" / "args.yaml").read_text())["init_from"] is None
    assert segkit.train(data=Drawn(4), val=Drawn(2), resume=tmp_path / "a").was_finished


def test_the_recipe_may_be_a_file_of_settings_whose_data_an_own_data_set_replaces(result, out, tmp_path):
    own = {"data": Drawn(4), "val": Drawn(2)}
    found = segkit.train(**own, recipe=out / "args.yaml", crop=32, out=tmp_path / "a")
    written = yaml.safe_load((found.folder.path / "args.yaml").read_text())
    assert (written["epochs"], written["lr"], written["crop"], written["recipe"]) == (1, 3e-3, 32, None)


@pytest.mark.parametrize("loss", ["bce", "ohem", "lovasz", {"bce": 0.5, "lovasz": 0.5}])
def test_class_weights_without_effect_are_told_before_the_data_is_read(tmp_path, loss):
    with pytest.raises(UsageError, match="does not use `class_weights`; losses that do: ce"):
        segkit.train(data="none.json", loss=loss, class_weights="sqrt", device="cpu", out=tmp_path / "a")


def test_a_model_of_shrunk_photographs_is_validated_scored_and_used_at_their_scale(shapes, tmp_path, capsys):
    save_model(vague_model(), tmp_path / "start.safetensors")
    settings = {**SETTINGS, "crop": 24, "decode_at_least": 24, "data": shapes[0], "val": shapes[1]}
    settings |= {"init_from": tmp_path / "start.safetensors", "lr": 1e-9, "epochs": 1}
    result = segkit.train(**settings, out=tmp_path / "run", verbose=True)
    printed = capsys.readouterr().out
    assert "scale  photographs are resized as in training to validate: to 1/2, 1/4 or 1/8 if both sides" in printed
    assert result.load().training_scale == TrainingScale(decode_at_least=24)

    def score(name, **options):
        shared = {"weights": tmp_path / "run", "data": shapes[1], "worst": 0, "mask_cache": "off", "device": "cpu"}
        return segkit.evaluate(**shared, out=tmp_path / name, verbose=True, **options).scores["miou"]

    assert score("default") == result.best_miou
    assert "scale  photographs are resized as in training: to 1/2" in capsys.readouterr().out
    # All photographs are halved: half of the full size, by the mean of four pixels.
    assert score("by hand", full_size=True, scales=0.5) == pytest.approx(result.best_miou, abs=1e-3)
    assert score("full size", full_size=True) != pytest.approx(result.best_miou, abs=3e-3)
    assert "scale  " not in capsys.readouterr().out

    wanted = {"source": shapes[1].parent / "images", "out": tmp_path / "masks", "save": "mask", "device": "cpu"}
    segkit.predict(weights=tmp_path / "run", **wanted)
    for file in (tmp_path / "masks/mask").iterdir():
        photo = next(wanted["source"].glob(f"{file.stem}.*"))
        with Image.open(file) as mask, Image.open(photo) as image:
            small = result.load().preprocessing(np.asarray(image.convert("RGB").reduce(2)))
            with torch.inference_mode():
                probs = result.load()(small).softmax(1)
            expected = F.interpolate(probs, size=image.size[::-1], mode="bilinear").argmax(1)[0]
            assert (np.asarray(mask) == expected.numpy()).mean() > 0.99  # Pillow rounds


def vague_model(seed=0):
    """Return a model whose labels vary; with a tiny learning rate, training hardly changes them."""
    torch.manual_seed(seed)
    options = {"class_names": NAMES, "pretrained": False, "pyramid_channels": 16, "channels": 16}
    model = create_model("fpn", backbone="test_resnet", **options)
    torch.nn.init.normal_(model.head.weight, std=3)
    return model


def test_evaluate_repeats_the_miou_of_a_validation_in_windows(shapes, tmp_path, capsys):
    settings = {**SETTINGS, "crop": 24, "lr": 1e-9, "data": shapes[0], "val": shapes[1], "init_from": vague_model()}
    result = segkit.train(**settings, epochs=1, val_window=16, out=tmp_path / "run")
    options = {"data": shapes[1], "mask_cache": "off", "device": "cpu", "worst": 0, "verbose": True}
    found = segkit.evaluate(weights=tmp_path / "run", **options, out=tmp_path / "own")
    assert found.scores["miou"] == result.best_miou
    assert "windows of 16 pixels, as in training's validation" in capsys.readouterr().out
    whole = segkit.evaluate(weights=tmp_path / "run", **options, window=0, out=tmp_path / "whole")
    assert whole.scores["miou"] != pytest.approx(result.best_miou, abs=3e-3)
    assert "whole images (training's validation: windows of 16 pixels)" in capsys.readouterr().out


def test_the_best_model_is_scored_in_the_windows_that_its_file_says(tmp_path, monkeypatch, caplog):
    model, data, run = vague_model().eval(), Drawn(3), RunFolder(tmp_path)
    matrices = {}
    for window in (None, SlidingWindow(16)):
        total = ConfusionMatrix(3)
        for index in range(3):
            total.update(Predictor(model, window=window or 0)(data.image(index)).mask, data.target(index))
        matrices[window] = total.counts.tolist()
    assert matrices[None] != matrices[SlidingWindow(16)]

    def score(window):
        parts = (torch.device("cpu"), nullcontext, Console(), window)
        return score_best(run, data, *parts)[0].counts.tolist()

    for own in matrices:
        model.window = own
        save_model(model, run.best)
        for window in matrices:  # such as the setting of a fold that fell back to windows
            assert score(window) == matrices[own]
    assert not caplog.messages

    model.window = None
    save_model(model, run.best)
    forward = type(model).forward

    def limited(self, images, **options):
        if images[0, 0].numel() > 16 * 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", limited)
        assert score(SlidingWindow(16, above=2**24)) == matrices[SlidingWindow(16)]
    assert "pictures are of windows of 16 pixels, but its mIoU was measured with whole images" in caplog.text

    content = run.best.read_bytes()  # an older segkit did not write the field
    older = content.replace(b', \\"window\\": null', b" " * 18)
    assert older != content
    run.best.write_bytes(older)
    assert score(SlidingWindow(16)) == matrices[SlidingWindow(16)]


def test_full_size_is_trained_for_by_a_setting_of_its_name():
    config = from_keywords(TrainConfig, {"data": Drawn(2), "model": "fpn", "backbone": "test_resnet"})
    for full_size in (False, True):
        config = replace(config, pretrained="false", full_size=full_size)
        scale, names = TrainingScale(decode_at_least=32), ("a", "b")
        options = {"scale": scale, "is_resumed": False}
        built = build_model(config, names, torch.device("cpu"), Ranks(), Console(), **options)
        assert built.training_scale == (TrainingScale() if full_size else scale)


def test_a_batch_larger_than_the_memory_is_refused_and_usual_ones_are_not(monkeypatch):
    monkeypatch.setattr(parts, "machine_memory", lambda: 2 * 10**9)
    crops = TrainConfig(data=(Path("a.json"),), crop=4000, batch_size=16)  # 12 bytes x 16 million pixels each
    check_batch_memory(crops, 10, Ranks())  # 10 x 0.192 GB
    with pytest.raises(UsageError, match=r"the pixels of one batch need 2 GB, and this machine has 2 GB"):
        check_batch_memory(crops, 11, Ranks())
    check_batch_memory(crops, 16, Ranks(count=2, count_here=1))  # half of the batch is on another machine
    check_batch_memory(replace(crops, crop=512, batch_size=512), 10**6, Ranks())
    monkeypatch.setattr(parts, "machine_memory", lambda: None)
    check_batch_memory(crops, 11, Ranks())


def test_a_crop_with_digits_too_many_ends_before_the_first_step(shapes, tmp_path, capsys):
    assert fails(train, *train_arguments(shapes, tmp_path / "a", "--crop", "10" * 50)) == 2
    assert "of memory; try a smaller --crop or --batch-size\n" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
