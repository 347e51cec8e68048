"""train.py --resume, signals and full disks, through the command itself."""

import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import SMALL, at_forward, fails, signal_at_batch, train_arguments
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

from segkit.cli import train
from segkit.config import TrainConfig
from segkit.models import Segmenter, create_model, load_model, read_header, save_model
from segkit.runs import check_writable
from segkit.workflows.parts import fixed_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    train.main(train_arguments(shapes, out, "--epochs", "1", "--augment", "flip"))
    return out


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "a")


def epochs(out):
    return [row["epoch"] for row in csv.DictReader((out / "results.csv").open())]


def test_a_finished_run_says_so(out, capsys):
    train.main(["--resume", str(out)])
    printed = capsys.readouterr().out
    assert f"{out} is already finished, at 1/1 epochs\n" in printed
    assert f"train it longer: python train.py --resume {out} --epochs 2\n" in printed


@pytest.mark.parametrize(
    ("epochs", "patience", "how", "longer"),
    [
        (2, 0, "is already finished, at 2/2 epochs", "--epochs 4"),
        (2, 3, "is already finished, at 2/2 epochs", "--epochs 4 --early-stopping 6"),
        (5, 3, "was stopped early, after 3 epochs without a better mIoU", "--early-stopping 6"),
    ],
)
def test_a_finished_run_says_how_to_train_it_longer(out, capsys, epochs, patience, how, longer):
    content = torch.load(out / "last.pt", weights_only=True)
    torch.save({**content, "epoch": 2, "stale_epochs": 3, "history": 2 * content["history"]}, out / "last.pt")
    train.main(["--resume", str(out), "--epochs", str(epochs), "--early-stopping", str(patience)])
    printed = capsys.readouterr().out
    assert f"{out} {how}\n" in printed
    assert f"train it longer: python train.py --resume {out} {longer}\n" in printed


def test_the_checkpoint_decides_whether_a_run_is_finished(out, capsys):
    content = torch.load(out / "last.pt", weights_only=True)
    assert content["finished"]
    torch.save({**content, "finished": False}, out / "last.pt")
    train.main(["--resume", str(out)])
    assert "already finished" not in capsys.readouterr().out
    assert torch.load(out / "last.pt", weights_only=True)["finished"]
    assert epochs(out) == ["1"]


def test_a_finished_run_warns_of_a_best_model_that_is_not_its_own(out, capsys):
    train.main(["--resume", str(out)])
    assert "best.safetensors" not in capsys.readouterr().err
    best = out / "best.safetensors"
    model = load_model(out)
    for change, words in (
        (
            lambda: save_model(model, best, epoch=7, miou=0.25, weights="raw"),
            "is of epoch 7 with an mIoU of 0.2500, but",
        ),
        (lambda: save_model(model, best), "was not written by this run"),
        (best.unlink, f"there is no {best}, the model of epoch 1"),
    ):
        change()
        train.main(["--resume", str(out)])
        printed = capsys.readouterr()
        assert words in printed.err
        assert "is already finished" in printed.out


def test_a_finished_run_without_its_pictures_gets_them(out):
    (out / "val_predictions.png").unlink()
    weights = (out / "best.safetensors").read_bytes()
    train.main(["--resume", str(out)])
    assert (out / "best.safetensors").read_bytes() == weights
    assert (out / "val_predictions.png").is_file()
    assert epochs(out) == ["1"]


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "OUT"],
        pytest.param(["--resume", "OUT/last.pt"], marks=pytest.mark.slow),
        pytest.param(["--out", "OUT", "--resume"], marks=pytest.mark.slow),
    ],
)
def test_an_extended_run_takes_its_settings_from_the_folder(out, capsys, words):
    train.main([*(word.replace("OUT", str(out)) for word in words), "--epochs", "2"])
    printed = capsys.readouterr()
    assert f"resuming {out} after epoch 1" in printed.out
    assert "warning: --epochs was 1, is 2: from here on the learning rate follows the new number" in printed.err
    assert epochs(out) == ["1", "2"]
    assert "augment: flip" in (out / "args.yaml").read_text()
    assert "epochs: 2" in (out / "args.yaml").read_text()


def test_other_settings_are_named_with_both_values(out, capsys):
    assert fails(train, "--resume", out, "--epochs", "2", "--lr", "0.5", "--crop", "64") == 2
    error = capsys.readouterr().err
    assert "cannot resume with other settings: --crop was 48, is 64; --lr was 0.003, is 0.5" in error


def test_a_checkpoint_of_another_architecture_is_refused_with_the_differences(out, capsys):
    content = torch.load(out / "last.pt", weights_only=True)
    content["config"]["backbone"], content["config"]["channels"] = "resnet18", 99
    torch.save(content, out / "last.pt")
    assert fails(train, "--resume", out, "--epochs", "2") == 2
    error = capsys.readouterr().err
    assert "backbone is resnet18 there, test_resnet here; channels is 99 there, 16 here; to" in error


def test_another_run_starts_from_the_weights_and_the_architecture_of_one(out, shapes, tmp_path, capsys):
    arguments = ["--data", shapes[0], "--val", shapes[1], "--init-from", out, "--out", tmp_path / "b"]
    arguments += ["--merge-same-name", "--crop", 48, "--epochs", 1, "--lr", 1e-9, "--workers", 0, "--batch-size", 8]
    train.main(list(map(str, arguments)))
    assert f"weights of {out}\n" in capsys.readouterr().out
    assert f"init_from: {out}" in (tmp_path / "b" / "args.yaml").read_text()
    weights = [load_model(folder).head.weight for folder in (out, tmp_path / "b")]
    assert torch.allclose(*weights, atol=1e-6)


def test_auxiliary_heads_are_trained_resumed_and_optional_for_a_start(shapes, tmp_path):
    heads = ["--aux-weight", "0.4", "--image-weight", "0.1"]
    train.main(train_arguments(shapes, tmp_path / "a", *heads, "--epochs", "1"))
    train.main(["--resume", str(tmp_path / "a"), "--epochs", "2", "--workers", "0"])
    model = load_model(tmp_path / "a")
    assert model.aux_head is not None
    assert model.image_head is not None
    for name, options in (("without", []), ("with", ["--aux-weight", "0.4"])):
        start = ["--init-from", tmp_path / "a", "--out", tmp_path / name, "--crop", 48, "--epochs", 1, "--workers", 0]
        data = ["--data", shapes[0], "--val", shapes[1], "--batch-size", 8, "--device", "cpu"]
        train.main(list(map(str, [*start, *data, *options])))
        assert (load_model(tmp_path / name).aux_head is None) == (name == "without")
        assert load_model(tmp_path / name).image_head is None


def test_init_from_a_model_of_other_channels_is_refused_before_the_data_is_read(tmp_path, capsys):
    save_model(create_model("fpn", backbone="test_resnet", num_classes=2, in_channels=4), tmp_path / "m.safetensors")
    assert fails(train, "--data", "none.json", "--init-from", str(tmp_path / "m.safetensors")) == 2
    assert "m.safetensors takes images of 4 channels, but photographs have 3" in capsys.readouterr().err


def test_init_from_a_folder_without_a_model_is_refused(shapes, tmp_path, capsys):
    assert fails(train, *train_arguments(shapes, tmp_path / "b"), "--init-from", tmp_path) == 2
    assert f"the folder {tmp_path} has neither best.safetensors nor model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@contextmanager
def nan_in(steps):
    """Make the logits NaN in some training steps, counted from 0 over all epochs."""
    training_steps = iter(range(99))

    def hook(module, inputs, logits):
        if isinstance(module, Segmenter) and module.training and next(training_steps) in steps:
            return logits * float("nan")
        return logits

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_after_a_loss_that_is_not_finite_a_run_restarts_once_at_half_the_rate(shapes, tmp_path, capsys, workers):
    options = ["--epochs", "3", "--nan-policy", "restart", "--schedule", "constant", "--warmup-epochs", "0"]
    with nan_in({3, 4, 5}):  # the whole second epoch of three
        train.main(train_arguments(shapes, tmp_path / "a", *options, "--workers", workers))
    printed = capsys.readouterr().err
    at = f"restarting from {tmp_path / 'a' / 'last.pt'}, after epoch 1, at half the learning rate"
    assert f"as in 2 steps before it, in epoch 2, step 3; try a lower --lr, or --amp off; {at}" in printed
    rows = list(csv.DictReader((tmp_path / "a" / "results.csv").open()))
    assert [float(row["lr"]) for row in rows] == [3e-3, 1.5e-3, 1.5e-3]


def test_an_extended_run_restarts_too(out, capsys):
    with nan_in({0, 1, 2}):
        train.main(["--resume", str(out), "--epochs", "2", "--nan-policy", "restart"])
    assert f"restarting from {out / 'last.pt'}, after epoch 1, at half" in capsys.readouterr().err
    assert epochs(out) == ["1", "2"]


@pytest.mark.parametrize(("policy", "restarts"), [("stop", 0), ("restart", 1)])
def test_a_loss_that_stays_not_finite_ends_the_run(shapes, tmp_path, capsys, policy, restarts):
    with nan_in(range(3, 99)):
        assert fails(train, *train_arguments(shapes, tmp_path / "a", "--epochs", "3", "--nan-policy", policy)) == 4
    printed = capsys.readouterr()
    assert printed.err.count("restarting from") == restarts
    assert "segkit train: error: the loss is nan, as in 2 steps before it, in epoch 2, step 3" in printed.err
    content = torch.load(tmp_path / "a" / "last.pt", weights_only=True)
    assert content["epoch"] == 1
    assert all(value.isfinite().all() for value in content["model"].values())


def test_workers_device_and_saving_may_change(out):
    train.main(["--resume", str(out), "--epochs", "2", "--workers", "1", "--save-every", "1", "--device", "auto"])
    assert epochs(out) == ["1", "2"]


def test_changed_data_is_an_error_unless_it_is_allowed(shapes, tmp_path, capsys):
    folder = shutil.copytree(shapes[0].parent, tmp_path / "data")
    files = folder / "train.json", folder / "val.json"
    train.main(train_arguments(files, tmp_path / "a", "--epochs", "1"))
    content = json.loads(files[0].read_text())
    content["annotations"].pop()
    files[0].write_text(json.dumps(content))
    assert fails(train, "--resume", tmp_path / "a", "--epochs", "2") == 2
    assert "the data files have changed since the run began" in capsys.readouterr().err
    train.main(["--resume", str(tmp_path / "a"), "--epochs", "2", "--allow-data-change"])
    assert "warning: the data has changed\n" in capsys.readouterr().err
    assert epochs(tmp_path / "a") == ["1", "2"]


def test_masks_whose_classes_were_exchanged_are_changed_data(tmp_path, capsys):
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.repeat(np.uint8([0, 1, 2]), 768).reshape(48, 48)).save(tmp_path / "masks" / f"{i}.bmp")
    (tmp_path / "names.txt").write_text("ground\nsquare\ndisc\n")
    paths = ["--data", tmp_path / "images", "--masks", tmp_path / "masks", "--class-names", tmp_path / "names.txt"]
    out = tmp_path / "a"
    train.main([*map(str, paths), "--out", str(out), *SMALL, "--epochs", "1"])
    sizes = {path: path.stat().st_size for path in (tmp_path / "masks").iterdir()}
    for path in sizes:
        Image.fromarray(np.uint8([0, 2, 1])[np.asarray(Image.open(path))]).save(path)
    assert sizes == {path: path.stat().st_size for path in sizes}
    assert fails(train, "--resume", out, "--epochs", "2") == 2
    assert "the data files have changed since the run began" in capsys.readouterr().err
    content = torch.load(out / "last.pt", weights_only=True)
    older = {part: digest for part, digest in content["data"].items() if "masks" not in part}
    torch.save({**content, "data": older}, out / "last.pt")
    train.main(["--resume", str(out), "--epochs", "2"])  # an earlier version did not look into masks
    assert epochs(out) == ["1", "2"]


def test_a_photograph_with_other_content_and_the_same_name_is_a_warning(out, shapes, tmp_path, capsys):
    folder = shutil.copytree(shapes[0].parent, tmp_path / "data")  # with the times of the files
    name = json.loads((folder / "val.json").read_text())["images"][0]["file_name"]
    with Image.open(folder / name) as image:
        other = image.rotate(180)
    other.save(folder / name)
    os.utime(folder / name, (0, 0))  # the clock may not have gone on by a second
    data = ["--data", folder / "train.json", "--val", folder / "val.json"]
    train.main(list(map(str, ["--resume", out, "--epochs", "2", *data])))
    warned = capsys.readouterr().err
    assert f"warning: val photographs have other names, sizes or times than when {out} was trained on them" in warned
    assert "train photographs" not in warned
    assert epochs(out) == ["1", "2"]


def test_after_a_change_of_the_data_the_rate_ends_at_zero_and_the_best_is_searched_again(shapes, tmp_path, capsys):
    folder = shutil.copytree(shapes[0].parent, tmp_path / "data")
    files = folder / "train.json", folder / "val.json"
    out = tmp_path / "a"
    train.main(train_arguments(files, out, "--epochs", "1", "--schedule", "poly", "--warmup-epochs", "0"))
    content = torch.load(out / "last.pt", weights_only=True)
    torch.save({**content, "best_miou": 0.99}, out / "last.pt")
    for file, count in zip(files, (4, 3), strict=True):
        coco = json.loads(file.read_text())
        coco["images"] = coco["images"][:count]
        kept = {image["id"] for image in coco["images"]}
        coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] in kept]
        file.write_text(json.dumps(coco))
    train.main(["--resume", str(out), "--epochs", "3", "--allow-data-change"])
    warned = "the data has changed; an epoch now has 1 steps instead of 3; the best mIoU is searched again, since"
    assert warned in capsys.readouterr().err
    rates = [float(row["lr"]) for row in csv.DictReader((out / "results.csv").open())]
    assert rates[1:] == pytest.approx([3e-3 * (2 / 3) ** 0.9, 3e-3 * (1 / 3) ** 0.9], rel=1e-4)
    content = torch.load(out / "last.pt", weights_only=True)
    assert 0 < content["best_miou"] < 0.99
    assert content["best_epoch"] in (2, 3)


def test_data_may_move(shapes, tmp_path):
    folder = shutil.copytree(shapes[0].parent, tmp_path / "old")
    train.main(train_arguments((folder / "train.json", folder / "val.json"), tmp_path / "a", "--epochs", "1"))
    new = folder.rename(tmp_path / "new")
    moved = ["--data", str(new / "train.json"), "--val", str(new / "val.json")]
    train.main(["--resume", str(tmp_path / "a"), "--epochs", "2", *moved])
    assert epochs(tmp_path / "a") == ["1", "2"]


def test_a_truncated_checkpoint_is_a_warning_and_the_one_before_is_used(out, capsys):
    train.main(["--resume", str(out), "--epochs", "2"])
    data = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(data[:1000])
    train.main(["--resume", str(out), "--epochs", "2"])
    printed = capsys.readouterr().err
    assert "last.pt (1000 bytes): the file is damaged or was not written by segkit; it is renamed to" in printed
    assert epochs(out) == ["1", "2"]


def test_a_damaged_checkpoint_is_set_aside_and_never_replaces_the_whole_one(out, monkeypatch):
    train.main(["--resume", str(out), "--epochs", "2"])
    whole = (out / "last.prev.pt").read_bytes()
    (out / "last.pt").write_bytes(b"damaged")
    replace, before_saves = os.replace, []

    def watched(source, target):
        if Path(target).name == "last.pt":
            before_saves.append((out / "last.prev.pt").read_bytes())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    train.main(["--resume", str(out), "--epochs", "2"])
    assert before_saves[0] == whole
    assert (out / "last.damaged.pt").read_bytes() == b"damaged"


def test_a_damaged_checkpoint_is_set_aside_if_the_one_before_is_named(out):
    train.main(["--resume", str(out), "--epochs", "2"])
    (out / "last.pt").write_bytes(b"damaged")
    train.main(["--resume", str(out / "last.prev.pt"), "--epochs", "2"])
    assert (out / "last.damaged.pt").read_bytes() == b"damaged"
    assert epochs(out) == ["1", "2"]
    (out / "last.pt").write_bytes(b"again")
    train.main(["--resume", str(out / "last.prev.pt"), "--epochs", "1"])
    assert (out / "last.damaged.pt").read_bytes() == b"damaged"
    assert (out / "last.damaged.old1.pt").read_bytes() == b"again"


def test_settings_that_a_run_did_not_know_yet_have_their_defaults(out):
    content = torch.load(out / "last.pt", weights_only=True)
    del content["settings"]["sam"]
    torch.save(content, out / "last.pt")
    lines = (out / "args.yaml").read_text().splitlines(keepends=True)
    (out / "args.yaml").write_text("".join(line for line in lines if not line.startswith("sam:")))
    train.main(["--resume", str(out), "--epochs", "2"])
    assert epochs(out) == ["1", "2"]


def test_an_extended_run_that_was_stopped_before_its_pictures_gets_them(out, capsys):
    def stop(model):
        if not model.training and len(epochs(out)) == 2:  # it is scored for the pictures
            signal.raise_signal(signal.SIGINT)

    with at_forward(stop):
        assert fails(train, "--resume", out, "--epochs", "2") == 130
    train.main(["--resume", str(out)])
    assert "is already finished" not in capsys.readouterr().out
    assert "Finished after 2 epochs." in (out / "report.html").read_text()


def test_one_image_per_batch_is_refused_if_batch_norms_see_pooled_values(shapes, tmp_path, capsys):
    single = ["--backbone", "resnest14d", "--batch-size", "1", "--epochs", "1"]
    assert fails(train, *train_arguments(shapes, tmp_path / "a", *single)) == 2
    error = capsys.readouterr().err
    assert "batch norms behind a global pooling, which cannot learn from a single image: use batches of two" in error
    assert "Traceback" not in error


def test_a_folder_that_is_taken_is_refused_before_the_data_is_read(out, capsys):
    assert fails(train, *train_arguments(("missing.json", "missing.json"), out)) == 2
    assert "exists already; choose another --out, or resume it with --resume" in capsys.readouterr().err


def test_resume_auto_starts_a_run_resumes_it_and_leaves_a_finished_one(shapes, tmp_path, capsys):
    out = tmp_path / "a"
    out.mkdir()
    (out / "args.yaml").write_text("")  # left by a training that was killed before it could save
    for count, said in (("1", f"run    {out}"), ("2", f"resuming {out} after epoch 1"), ("2", "is already finished")):
        train.main(train_arguments(shapes, out, "--resume", "auto", "--epochs", count))
        assert said in capsys.readouterr().out
        assert len(epochs(out)) == int(count)


def test_a_best_model_of_an_epoch_that_turned_out_otherwise_is_what_the_run_reports(out, capsys):
    # As after a kill between best.safetensors and last.pt in epoch 2.
    save_model(load_model(out), out / "best.safetensors", epoch=2, miou=0.9876, weights="raw")
    before = (out / "best.safetensors").read_bytes()
    train.main(["--resume", str(out), "--epochs", "2", "--lr", "3e-3"])
    printed = capsys.readouterr()
    assert (
        "best.safetensors is of epoch 2 with an mIoU of 0.9876, but by the checkpoint it is of epoch 1" in printed.err
    )
    assert (out / "best.safetensors").read_bytes() == before
    last = torch.load(out / "last.pt", weights_only=True)
    assert (last["best_epoch"], last["best_miou"]) == (2, 0.9876)
    assert "best mIoU, epoch 2" in (out / "report.html").read_text()
    # The IoU of the classes are of that model, not of the epoch that is in results.csv.
    table = [line.split() for line in printed.out.splitlines()]
    shown = [float(line[1]) for line in table if len(line) == 2 and line[0] in ("background", "square", "disc")]
    rows = list(csv.reader((out / "confusion_matrix.csv").open()))[1:]
    matrix = np.array([[int(count) for count in row[1:]] for row in rows])
    iou = 100 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert np.allclose(shown, iou, atol=0.051)


def test_a_model_without_checkpoint_is_not_replaced_by_a_new_run(out, shapes):
    content = (out / "best.safetensors").read_bytes()
    for path in out.iterdir():
        if path.name not in ("args.yaml", "best.safetensors"):
            path.unlink()
    train.main(train_arguments(shapes, out, "--resume", "auto", "--epochs", "1"))
    assert (out / "best.old1.safetensors").read_bytes() == content
    assert epochs(out) == ["1"]


def test_a_run_without_its_settings_says_so(out, shapes, capsys):
    (out / "args.yaml").unlink()
    assert fails(train, "--resume", out) == 2
    assert f"{out} has no args.yaml, so its data and settings are not known" in capsys.readouterr().err
    train.main(["--resume", str(out), *train_arguments(shapes, out, "--epochs", "2", "--augment", "flip")])
    assert epochs(out) == ["1", "2"]


def test_resume_auto_begins_only_in_a_folder_with_the_settings_of_a_run(shapes, tmp_path, capsys):
    (tmp_path / "my_args.yaml.txt").write_text("notes")
    assert fails(train, *train_arguments(shapes, tmp_path, "--resume", "auto")) == 2
    assert "exists already; choose another --out" in capsys.readouterr().err


def test_resume_auto_starts_nothing_in_a_folder_of_something_else(shapes, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photograph.jpg").write_bytes(b"")
    assert fails(train, *train_arguments(shapes, tmp_path / "a", "--resume", "auto")) == 2
    assert "exists already; choose another --out" in capsys.readouterr().err
    assert fails(train, "--data", shapes[0], "--resume", "auto") == 2
    assert "--resume auto needs --out" in capsys.readouterr().err


def test_resume_and_out_must_agree(out, tmp_path, capsys):
    assert fails(train, "--resume", out, "--out", tmp_path / "b") == 2
    assert "--resume continues in the folder of the run that it names" in capsys.readouterr().err


def test_an_unwritable_folder_is_an_error_at_the_start(shapes, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert fails(train, *train_arguments(shapes, tmp_path / "file" / "run")) == 2
    assert "file is a file" in capsys.readouterr().err

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cannot write to .*: Permission denied"):
        check_writable(tmp_path / "new")


def disk_full(*args, **options):
    raise OSError(28, "No space left on device")


def test_a_full_disk_at_the_end_exits_with_1(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "save", disk_full)
    assert fails(train, *train_arguments(shapes, tmp_path / "a", "--epochs", "2")) == 1
    error = capsys.readouterr().err
    message = r"the run is finished, but could not be saved \(\d+ MB\): cannot write .*: No space left on device"
    assert re.search(message, error)
    assert "Traceback" not in error


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")])
def test_a_signal_saves_and_says_how_to_resume(shapes, tmp_path, capsys, number, code, name):
    out = tmp_path / "a"
    with signal_at_batch(1, number):
        assert fails(train, *train_arguments(shapes, out, "--epochs", "1")) == code
    assert f"stopped by {name}; saved. To resume: python train.py --resume {out}\n" in capsys.readouterr().err
    assert torch.load(out / "last.pt", weights_only=True)["step"] == 2
    train.main(["--resume", str(out)])
    assert epochs(out) == ["1"]


def test_a_signal_on_a_full_disk_does_not_say_that_it_saved(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "save", disk_full)
    with signal_at_batch(0, signal.SIGTERM):
        assert fails(train, *train_arguments(shapes, tmp_path / "a")) == 143
    assert "stopped by SIGTERM; not saved" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["args.yaml", "env.json"])
def test_a_full_disk_at_the_start_exits_with_1(shapes, tmp_path, capsys, monkeypatch, file):
    real = Path.open

    def full(path, mode="r", *args, **options):
        if file in path.name and "w" in mode:
            raise OSError(28, "No space left on device", str(path))
        return real(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    assert fails(train, *train_arguments(shapes, tmp_path / "a")) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert file in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_training_continues_when_nobody_reads_its_output(shapes, tmp_path):
    arguments = train_arguments(shapes, tmp_path / "a", "--epochs", "2")
    command = [sys.executable, "-m", "segkit", "train", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(), error) == (0, "")
    assert (tmp_path / "a" / "report.html").is_file()


def test_whole_numbers_equal_the_settings_in_the_run_folder():
    given = TrainConfig(lr=1, loss={"ce": 1}, layer_decay=1, batch_size=8)
    read = TrainConfig(lr=1.0, loss={"ce": 1.0}, layer_decay=1.0, batch_size=8)
    assert fixed_settings(given) == fixed_settings(read)
    assert fixed_settings(given)["batch_size"] == "8"


def test_every_setting_of_the_engine_trains(shapes, tmp_path, capsys):
    settings = "--schedule poly --accumulate 2 --freeze-backbone 1 --ema 0.9 --early-stopping 5 --layer-decay 0.9"
    rare = "--class-weights sqrt --rare-threshold 0.5 --rare-crops 0.5 --mix copy-paste --backbone-lr-factor 0.5"
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "2", *settings.split(), *rare.split()))
    out = capsys.readouterr().out
    assert "weights background" in out
    assert "rare   disc" in out or "rare   square" in out
    (_, row) = csv.DictReader((tmp_path / "a" / "results.csv").open())
    assert {"ema_val_loss", "ema_miou", "ema_iou/disc"} <= set(row)
    assert read_header(tmp_path / "a" / "best.safetensors")["extra"]["weights"] in ("raw", "ema")


@pytest.mark.slow
def test_training_continues_when_its_terminal_is_closed(shapes, tmp_path):
    out = tmp_path / "a"
    words = train_arguments(shapes, out, "--epochs", "30", "--workers", "2")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "segkit", "train", *words])
    deadline = time.monotonic() + 60
    while not (out / "last.pt").is_file() and time.monotonic() < deadline:
        os.read(terminal, 10_000)  # a full terminal would stop the command
    os.close(terminal)
    os.killpg(child, signal.SIGHUP)  # a shell passes it on to all processes of its jobs, here to the loader's workers
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(epochs(out)) == 30
    assert (out / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "delay"),
    [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 0), *((signal.SIGKILL, -9, delay) for delay in (0, 0.2, 0.7, 1.1))],
)
def test_a_command_that_is_stopped_and_resumed_equals_one_that_was_not(shapes, tmp_path, number, code, delay):
    out, whole = tmp_path / "a", tmp_path / "b"
    options = ["--save-every", "2", "--schedule", "constant", "--warmup-epochs", "0", "--workers", "2"]
    command = [sys.executable, "train.py", *train_arguments(shapes, out, "--epochs", "200", *options)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (out / "last.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(delay)
    os.killpg(process.pid, number)  # as Ctrl-C in a terminal does: the workers get it too
    assert process.wait(timeout=30) == code
    end = str(torch.load(out / "last.pt", weights_only=True)["epoch"] + 1)
    resume = [sys.executable, "train.py", "--resume", str(out), "--epochs", end]
    subprocess.run(resume, cwd=ROOT, check=True, timeout=120)
    command = [sys.executable, "train.py", *train_arguments(shapes, whole, "--epochs", end, *options)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert epochs(out) == epochs(whole)
    resumed, expected = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (out, whole))
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
