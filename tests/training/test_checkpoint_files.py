"""Checkpoint files: written whole or not at all, refused if damaged, and without code."""

import math
import os
import pickle
import shutil

import pytest
import torch
from helpers.tiny_training import build_state, interrupted, run

from segkit.models import load_model, save_model
from segkit.training import load_state, read_checkpoint, save_state
from segkit.training.checkpoint import match_best
from segkit.training_scale import TrainingScale


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    run(out)
    return out


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_the_previous_checkpoint_is_kept(out):
    assert read_checkpoint(out / "last.pt")[0]["epoch"] == 2
    assert read_checkpoint(out / "last.prev.pt")[0]["epoch"] == 1


def test_a_checkpoint_contains_only_plain_types(out):
    content = torch.load(out / "last.pt", weights_only=True)
    assert {"model", "ema", "optimizer", "scheduler", "scaler", "random", "history", "step"} <= set(content)


def truncate(data):
    return data[: len(data) // 2]


def flip_a_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def replace_by_a_page(data):
    return b"<!DOCTYPE html><p>quota exceeded"


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, replace_by_a_page, lambda data: b""])
def test_the_previous_checkpoint_is_read_if_the_last_is_damaged(out, damage):
    data = damage((out / "last.pt").read_bytes())
    (out / "last.pt").write_bytes(data)
    content, (sentence,) = read_checkpoint(out)
    assert content["epoch"] == 1
    assert f"last.pt ({len(data)} bytes): the file is damaged" in sentence


@pytest.mark.parametrize(("place", "bit"), [(10, 8), (38, 16)])  # compressed, a folder
def test_a_flipped_bit_in_the_directory_of_the_zip_file_is_detected(out, place, bit):
    data = bytearray((out / "last.pt").read_bytes())
    data[data.index(b"PK\x01\x02") + place] ^= bit
    (out / "last.pt").write_bytes(data)
    content, [sentence] = read_checkpoint(out)
    assert content["epoch"] == 1
    assert "the file is damaged" in sentence


def test_a_run_without_fp16_can_be_resumed_with_fp16(out):
    content, _ = read_checkpoint(out)
    state = build_state()
    state.scaler = torch.amp.GradScaler("cpu", enabled=True)
    load_state(state, content)
    assert state.scaler.get_scale() > 1


def test_two_damaged_checkpoints_are_an_error_that_names_both(out):
    for name in ("last.pt", "last.prev.pt"):
        (out / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"last\.pt \(7 bytes\).*last\.prev\.pt \(7 bytes\)"):
        read_checkpoint(out)


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: there is no .*last\.pt"):
        read_checkpoint(tmp_path)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-was-run",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 2, "model": Payload()}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="was not written by segkit"):
        read_checkpoint(tmp_path)
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="damaged or was not written by segkit"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "payload-was-run").exists()


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    torch.save({"format": 1}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="not written by this version of segkit"):
        read_checkpoint(tmp_path)


def test_an_older_checkpoint_without_the_finished_field_can_be_resumed(out):
    content = torch.load(out / "last.pt", weights_only=True)
    del content["finished"]
    torch.save(content, out / "last.pt")
    state = build_state()
    load_state(state, read_checkpoint(out)[0])
    assert (state.epoch, state.finished) == (2, False)


def test_a_resumed_run_keeps_its_training_scale_and_an_older_one_is_validated_at_full_size(tmp_path):
    state = build_state()
    for model in (state.model, state.ema.module):
        model.training_scale = TrainingScale(decode_at_least=64)
    save_state(state, tmp_path)
    content = read_checkpoint(tmp_path)[0]
    for older in (False, True):
        if older:
            del content["training_scale"]
            torch.save(content, tmp_path / "last.pt")
            content = read_checkpoint(tmp_path)[0]
        load_state(state, content)
        for model in (state.model, state.ema.module):
            assert model.training_scale == (TrainingScale() if older else TrainingScale(decode_at_least=64))


def test_changed_settings_and_changed_data_are_refused(out):
    content, _ = read_checkpoint(out)
    content["settings"], content["data"] = {"lr": "0.1", "crop": "64"}, {"train": "a", "val": "b"}
    state = build_state()
    state.settings, state.data = {"lr": "0.2", "crop": "64"}, content["data"]
    with pytest.raises(ValueError, match=r"cannot resume with other settings: `lr` was 0\.1, is 0\.2$"):
        load_state(state, content)
    state.settings, state.data = content["settings"], {"train": "c", "val": "b"}
    with pytest.raises(ValueError, match="the data files have changed since the run began"):
        load_state(state, content)
    load_state(state, content, allow_data_change=True)
    assert (state.epoch, state.best_miou) == (2, content["best_miou"])


def test_other_validation_images_start_a_new_search_for_the_best(tmp_path):
    run(tmp_path, state=build_state(schedule="plateau"))
    content, _ = read_checkpoint(tmp_path)
    assert math.isfinite(content["scheduler"]["plateau"]["best"])
    content["data"] = {"val": "first"}
    state = build_state(schedule="plateau")
    state.data = {"val": "others"}
    load_state(state, content, allow_data_change=True)
    assert (state.best_miou, state.best_epoch, state.stale_epochs) == (-math.inf, 0, 0)
    assert (state.scheduler.plateau.best, state.scheduler.plateau.stale) == (math.inf, 0)


def test_another_number_of_steps_restarts_the_epoch(tmp_path):
    assert interrupted(tmp_path, 7, state=build_state(steps=5))
    content, _ = read_checkpoint(tmp_path)
    assert (content["epoch"], content["step"], content["updates"]) == (0, 5, 5)
    state = build_state(steps=9)
    state.steps_per_epoch = 9
    load_state(state, {**content, "epoch": 3}, allow_data_change=True)
    assert (state.step, state.updates, state.image_count) == (0, 27, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(out, value):
    before = (out / "last.pt").read_bytes()
    state = build_state()
    with torch.no_grad():
        state.model.head.weight[0] = value
    with pytest.raises(FloatingPointError, match=r"head\.weight are no longer finite"):
        save_state(state, out)
    assert (out / "last.pt").read_bytes() == before


@pytest.mark.parametrize("part", ["ema", "optimizer"])
def test_averages_and_optimizers_that_are_not_finite_are_not_saved(out, part):
    before = (out / "last.pt").read_bytes()
    state = build_state()
    load_state(state, read_checkpoint(out)[0])
    values = (
        state.ema.module.head.weight if part == "ema" else state.optimizer.state[state.model.head.weight]["exp_avg"]
    )
    values.data[0] = float("nan")
    named = r"averaged weights head\.weight" if part == "ema" else "optimizer's exp_avg"
    with pytest.raises(FloatingPointError, match=rf"the {named} are no longer finite in epoch 3, and are not saved"):
        save_state(state, out)
    assert (out / "last.pt").read_bytes() == before


def resumed(out):
    """The state of the checkpoint in a run folder, what is wrong with its best.safetensors, and what is said best."""
    state = build_state()
    load_state(state, read_checkpoint(out)[0])
    known = (state.best_epoch, state.best_miou, state.best_weights)
    problem = match_best(state, out)
    return known, (state.best_epoch, state.best_miou, state.best_weights), problem


def test_a_best_model_that_agrees_with_the_checkpoint_is_no_problem(out):
    known, best, problem = resumed(out)
    assert best == known
    assert problem is None


@pytest.mark.parametrize("epoch", [1, 2, 7])  # 2, 7: as after a kill between the two files, or with last.prev.pt
def test_a_best_model_that_disagrees_with_the_checkpoint_counts(out, epoch):
    os.replace(out / "last.prev.pt", out / "last.pt")
    save_model(load_model(out), out / "best.safetensors", epoch=epoch, miou=0.9876, weights="ema")
    known, best, problem = resumed(out)
    assert best == (epoch, 0.9876, "ema") != known
    assert f"best.safetensors is of epoch {epoch} with an mIoU of 0.9876, but by the checkpoint it is of" in problem


def test_a_best_model_that_is_gone_is_searched_again(out):
    (out / "best.safetensors").unlink()
    _, best, problem = resumed(out)
    assert best == (0, -math.inf, "raw")
    assert "there is no" in problem
    assert "the best mIoU is searched again" in problem


def damage(file):
    file.write_bytes(b"half")


def without_score(file):
    save_model(load_model(file), file)


def of_other_classes(file):
    model = load_model(file)
    model.class_names = ("background", "square", "ring")
    save_model(model, file, epoch=1, miou=0.5, weights="raw")


@pytest.mark.parametrize("change", [damage, without_score, of_other_classes])
def test_a_best_model_that_is_not_of_the_run_is_renamed_and_never_replaced(out, change):
    change(out / "best.safetensors")
    content = (out / "best.safetensors").read_bytes()
    (out / "best.old1.safetensors").write_text("mine")
    _, best, problem = resumed(out)
    assert best == (0, -math.inf, "raw")
    assert "it is renamed to best.old2.safetensors" in problem
    assert (out / "best.old2.safetensors").read_bytes() == content
    assert (out / "best.old1.safetensors").read_text() == "mine"


def test_a_best_model_measured_on_earlier_images_is_not_taken_over(out):
    # The validation images have changed, and nothing was validated since.
    for epoch, expected in ((2, (0, -math.inf, "raw")), (3, (3, 0.9, "raw"))):
        save_model(load_model(out), out / "best.safetensors", epoch=epoch, miou=0.9, weights="raw")
        state = build_state()
        load_state(state, read_checkpoint(out)[0])
        state.forget_best()
        match_best(state, out)
        assert (state.best_epoch, state.best_miou, state.best_weights) == expected
        state.forget_best()
        assert match_best(state, out, may_be_newer=False) is None
        assert state.best_epoch == 0
