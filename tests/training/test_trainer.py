"""Trainer.epochs from epoch to epoch: the best weights, the end, full disks, signals."""

import csv
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_training import CPU, Drawn, build_state, forked, outcome, run, same

from segkit.data import loaders
from segkit.errors import MachineError, UsageError
from segkit.losses import create_loss
from segkit.models import create_model, load_model, read_header
from segkit.training import (
    CheckpointError,
    Interrupted,
    StopSignals,
    Trainer,
    TrainOptions,
    TrainState,
    Validation,
    autocast,
    create_ema,
    create_optimizer,
    create_scaler,
    create_scheduler,
    read_checkpoint,
    seed_all,
    validate,
)
from segkit.training.validation import AUTO_WINDOW


class FixedScores:
    """Stands in for the scores of a validation."""

    pixel_accuracy = 0.5

    def __init__(self, miou):
        self.miou = miou

    def to_dict(self):
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "iou/background": self.miou}


def scored(**mious):
    """Return a Trainer with given mIoUs, one for each validation: `scored(raw=[...], ema=[...])`."""
    streams = {name: iter(values) for name, values in mious.items()}

    class Scored(Trainer):
        def validate(self, val):
            return {name: Validation(1.0, FixedScores(next(stream))) for name, stream in streams.items()}

    return Scored


def test_normalised_images_are_refused_by_the_validation():
    batch = torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.uint8)
    model = create_model("fpn", backbone="test_resnet", num_classes=2, pyramid_channels=8, channels=8)
    with pytest.raises(UsageError, match=r"must be uint8 in 0\.\.255, got torch\.float32; are they normalised already"):
        validate(model, [batch], create_loss("ce"), device=CPU, autocast=autocast(CPU, "off"))


def test_training_stops_when_the_miou_has_not_risen_for_the_given_epochs(tmp_path):
    kind = scored(raw=[0.3, 0.5, 0.4, 0.5, 0.9])
    state = run(tmp_path, kind=kind, state=build_state(ema=0), epochs=9, early_stopping=2)
    assert state.epoch == 4
    assert (state.best_miou, state.best_epoch, state.stale_epochs) == (0.5, 2, 2)


def test_a_checkpoint_says_whether_its_run_has_reached_the_end(tmp_path):
    kind = scored(raw=[0.3, 0.5, 0.4, 0.4])
    run(tmp_path, kind=kind, state=build_state(ema=0), epochs=1)
    assert read_checkpoint(tmp_path)[0]["finished"]
    with pytest.raises(Interrupted):  # in the second of three epochs
        run(tmp_path, kind=kind, state=build_state(ema=0), resume=True, epochs=3, stop_after=1)
    assert not read_checkpoint(tmp_path)[0]["finished"]
    run(tmp_path, kind=kind, state=build_state(ema=0), resume=True, epochs=9, early_stopping=2)
    content, _ = read_checkpoint(tmp_path)
    assert (content["epoch"], content["finished"]) == (4, True)


def test_validation_runs_every_few_epochs_and_after_the_last(tmp_path):
    kind = scored(raw=[0.3, 0.5, 0.4])
    state = run(tmp_path, kind=kind, state=build_state(ema=0), epochs=5, val_every=2)
    assert (state.epoch, state.best_epoch, state.stale_epochs) == (5, 4, 1)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["miou"] for row in rows] == ["", "0.3", "", "0.5", "0.4"]
    assert all(row["train_loss"] for row in rows)


def test_early_stopping_waits_for_a_validation(tmp_path):
    kind = scored(raw=[0.3, 0.2])
    state = run(tmp_path, kind=kind, state=build_state(ema=0), epochs=9, val_every=2, early_stopping=1)
    assert (state.epoch, state.best_epoch, state.stale_epochs) == (4, 2, 2)


def test_a_plateau_does_not_count_epochs_without_validation(tmp_path):
    kind = scored(raw=[0.3, 0.3])
    state = run(tmp_path, kind=kind, state=build_state(ema=0, schedule="plateau"), epochs=6, val_every=3)
    assert (state.scheduler.plateau.stale, state.scheduler.plateau.factor) == (1, 1.0)


def test_patience_survives_a_resume(tmp_path):
    kind = scored(raw=[0.5, 0.4, 0.3, 0.9])
    run(tmp_path, kind=kind, state=build_state(ema=0), epochs=2, early_stopping=2)
    state = run(tmp_path, kind=kind, state=build_state(ema=0), resume=True, epochs=9, early_stopping=2)
    assert (state.epoch, state.best_epoch) == (3, 1)


@pytest.mark.parametrize(("raw", "ema", "best"), [([0.3], [0.4], "ema"), ([0.4], [0.3], "raw"), ([0.4], [0.4], "raw")])
def test_the_better_of_raw_and_averaged_weights_is_kept(tmp_path, raw, ema, best):
    kind = scored(raw=raw, ema=ema)
    state = run(tmp_path, kind=kind, epochs=1)
    assert read_header(tmp_path / "best.safetensors")["extra"] == {"epoch": 1, "miou": 0.4, "weights": best}
    expected = state.model if best == "raw" else state.ema.module
    assert torch.equal(load_model(tmp_path).head.weight, expected.head.weight)
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    assert (float(row["miou"]), float(row["ema_miou"])) == (raw[0], ema[0])


def test_a_score_that_is_nan_is_never_the_best(tmp_path):
    kind = scored(raw=[0.2, float("nan")], ema=[float("nan"), float("nan")])
    state = run(tmp_path, kind=kind, epochs=2)
    assert (state.best_miou, state.best_epoch, state.best_weights) == (0.2, 1, "raw")


def test_a_validation_set_without_any_class_is_an_error(tmp_path):
    kind = scored(raw=[float("nan")])
    with pytest.raises(ValueError, match="the validation images show no class that is scored"):
        run(tmp_path, kind=kind, state=build_state(ema=0), epochs=1)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError("Unable to allocate 9. GiB for an array"),
]


class OutOfMemory(torch.nn.Module):
    """A loss that runs out of memory in the first validations."""

    def __init__(self, times, error=OUT_OF_MEMORY[0]):
        super().__init__()
        self.loss, self.times, self.error = create_loss({"ce": 0.6, "dice": 0.4}), times, error

    def forward(self, logits, target):
        if not logits.requires_grad and self.times:
            self.times -= 1
            raise self.error
        return self.loss(logits, target)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_validation_that_runs_out_of_memory_is_tried_once_more(tmp_path, error):
    run(tmp_path / "a", epochs=1, val_window=replace(AUTO_WINDOW, above=0))  # what it falls back to
    run(tmp_path / "b", epochs=1, loss_fn=OutOfMemory(1, error))
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


def test_a_validation_with_another_error_is_not_tried_again(tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tmp_path, epochs=1, loss_fn=OutOfMemory(1, RuntimeError("shapes do not match")))


def test_a_validation_that_runs_out_of_memory_twice_saves_the_epoch_first(tmp_path):
    run(tmp_path / "a", epochs=1)
    with pytest.raises(MachineError, match="try `val_window=512`"):
        run(tmp_path / "b", epochs=1, loss_fn=OutOfMemory(2))
    assert read_checkpoint(tmp_path / "b")[0]["step"] == 5
    run(tmp_path / "b", epochs=1, resume=True)
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


@pytest.mark.slow
def test_a_compiled_step_trains_like_an_eager_one(tmp_path):
    torch.compiler.reset()
    compiled, eager = run(tmp_path / "a", epochs=1, compile=True), run(tmp_path / "b", epochs=1)
    assert compiled.history[0]["train_loss"] == pytest.approx(eager.history[0]["train_loss"], abs=0.05)
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())


def test_an_extended_run_keeps_its_epochs_and_its_best(tmp_path):
    kind = scored(raw=[0.5, 0.4, 0.3])
    short = run(tmp_path, kind=kind, state=build_state(ema=0), epochs=1)
    longer = run(tmp_path, kind=kind, state=build_state(ema=0, epochs=3), resume=True, epochs=3)
    assert [row["epoch"] for row in longer.history] == [1, 2, 3]
    assert same(longer.history[0], short.history[0])
    assert (longer.best_miou, longer.best_epoch, longer.stale_epochs) == (0.5, 1, 2)


def disk_full(*args, **options):
    raise OSError(28, "No space left on device")


def test_a_full_disk_does_not_stop_training_and_keeps_the_saved_files(tmp_path, monkeypatch, caplog):
    real, calls = torch.save, iter(range(99))

    def sometimes_full(*args, **options):
        return disk_full() if next(calls) == 1 else real(*args, **options)

    monkeypatch.setattr(torch, "save", sometimes_full)
    state = run(tmp_path, epochs=3)
    assert "cannot write" in caplog.text
    assert "No space left on device" in caplog.text
    assert state.epoch == read_checkpoint(tmp_path)[0]["epoch"] == 3
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "results.csv").open())] == ["1", "2", "3"]


def test_a_failure_to_write_results_csv_is_a_warning(tmp_path, caplog):
    (tmp_path / "results.csv").mkdir()
    run(tmp_path, epochs=1)
    assert f"cannot write {tmp_path / 'results.csv'}: Is a directory" in caplog.text
    assert len(read_checkpoint(tmp_path)[0]["history"]) == 1


def test_a_full_disk_at_the_end_is_an_error(tmp_path, monkeypatch):
    run(tmp_path, epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(CheckpointError, match="could not be saved"):
            run(tmp_path, state=build_state(), epochs=1)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_weights_that_could_not_be_written_are_not_the_best(tmp_path, monkeypatch):
    kind = scored(raw=[0.5, 0.4])
    real, best = os.replace, []

    def once_full(source, target):
        if Path(target).name == "best.safetensors":
            best.append(target)
            if len(best) == 1:
                disk_full()
        real(source, target)

    monkeypatch.setattr(os, "replace", once_full)
    state = run(tmp_path, kind=kind, state=build_state(ema=0), epochs=2)
    assert (state.best_miou, state.best_epoch) == (0.4, 2)
    assert read_header(tmp_path / "best.safetensors")["extra"]["miou"] == 0.4


def test_the_first_signal_waits_for_a_check_and_the_second_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
            stop.check()
        assert caught.value.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_sigterm_stops_at_once_with_its_own_exit_code():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()
        with pytest.raises(SystemExit) as exit:
            signal.raise_signal(signal.SIGTERM)
    assert exit.value.code == 143


def test_files_are_whole_after_a_second_ctrl_c(tmp_path):
    run(tmp_path / "a", epochs=1)

    def stopped():
        with StopSignals():
            run(tmp_path / "b", epochs=1, save_every=1, progress=interrupt_twice)

    def interrupt_twice(batches):
        for i, batch in enumerate(batches):
            if i == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            yield batch

    assert forked(stopped) == 1
    assert read_checkpoint(tmp_path / "b")[0]["step"] == 3
    run(tmp_path / "b", resume=True, epochs=1)
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


def test_a_stop_after_a_failed_save_tries_again_and_reports_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(Interrupted) as caught:
        run(tmp_path, epochs=2, stop_after=9)  # after 5 steps and 4 validation images, at the end of the epoch
    assert caught.value.error is not None
    assert not (tmp_path / "last.pt").exists()


needs_usr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no SIGUSR1")


@needs_usr1
def test_sigusr1_asks_once_for_a_save_and_does_not_stop():
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals() as stop:
        assert not stop.save_asked()
        signal.raise_signal(signal.SIGUSR1)
        stop.check()
        assert stop.save_asked()
        assert not stop.save_asked()
    assert signal.getsignal(signal.SIGUSR1) is before


class SaveAsked(StopSignals):
    """Asks for a save at call number `call`, and copies the run folder as it is at the next call."""

    def __init__(self, call, out, copy):
        super().__init__()
        self.call, self.out, self.copy, self.calls = call, out, copy, 0

    def save_asked(self):
        self.calls += 1
        if self.calls == self.call + 1:
            shutil.copytree(self.out, self.copy)
        return self.calls == self.call


@pytest.mark.parametrize(
    ("call", "epoch", "step"),
    [pytest.param(2, 0, 2, marks=pytest.mark.slow), (6, 0, 5), pytest.param(11, 1, 2, marks=pytest.mark.slow)],
)  # the second in validation
def test_a_requested_save_can_be_resumed_and_changes_nothing(tmp_path, call, epoch, step):
    run(tmp_path / "a")
    run(tmp_path / "b", stop=SaveAsked(call, tmp_path / "b", tmp_path / "c"))
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))
    content, _ = read_checkpoint(tmp_path / "c")
    assert (content["epoch"], content["step"]) == (epoch, step)
    run(tmp_path / "c", resume=True)
    assert same(outcome(tmp_path / "c"), outcome(tmp_path / "a"))


def test_a_signal_during_a_save_does_not_interrupt_it(tmp_path, monkeypatch):
    run(tmp_path / "a", epochs=2)
    real, calls = os.fsync, iter(range(99))

    def signalled(handle):
        if next(calls) == 0:
            signal.raise_signal(signal.SIGTERM)
        real(handle)

    with monkeypatch.context() as patch, StopSignals() as stop:
        patch.setattr(os, "fsync", signalled)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run(tmp_path / "b", epochs=2, stop=stop)
    assert read_checkpoint(tmp_path / "b")[0]["epoch"] == 1
    assert not [path for path in (tmp_path / "b").iterdir() if path.name.startswith(".")]
    run(tmp_path / "b", epochs=2, resume=True)
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


class Batches(list):
    """Batches that are the same in each epoch."""

    batch_sampler = SimpleNamespace(epoch=0, start=0)


def test_a_model_with_one_channel_is_trained_and_scored_as_its_class_against_the_background(tmp_path):
    seed_all(0)
    options = {"class_names": ["bright"], "pyramid_channels": 8, "channels": 8}
    model = create_model("fpn", backbone="test_resnet", **options)
    optimizer = create_optimizer(model, lr=1e-2)
    scheduler = create_scheduler(optimizer, "constant", epochs=2, steps_per_epoch=4)
    state = TrainState(model, optimizer, scheduler, create_scaler(CPU, "off"), create_ema(model, 0))
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (8, 1, 4, 4), generator=random).repeat_interleave(8, 2).repeat_interleave(8, 3)
    target[:, :, :4] = 255
    images = (60 + 120 * (target == 1)).expand(-1, 3, -1, -1).to(torch.uint8).contiguous()
    batches = list(zip(images.split(2), target[:, 0].to(torch.uint8).split(2), strict=True))
    val = batches[:2]
    loader = Batches(batches)
    loss = create_loss({"bce": 0.5, "dice": 0.5}, mode="binary")
    trainer = Trainer(state, loss, tmp_path, TrainOptions(epochs=2), device=CPU, autocast=autocast(CPU, "off"))
    list(trainer.epochs(loader, val))
    model = load_model(tmp_path).eval()
    with torch.no_grad():
        predicted = torch.cat([model(model.preprocessing(x)) > 0 for x, _ in val])[:, 0]
    truth = torch.cat([y for _, y in val])
    valid = truth != 255
    of_class = ((predicted & (truth == 1))[valid].sum() / (predicted | (truth == 1))[valid].sum()).item()
    of_background = ((~predicted & (truth == 0))[valid].sum() / (~predicted | (truth == 0))[valid].sum()).item()
    best = max(state.history, key=lambda row: row["miou"])
    assert best["iou/bright"] == pytest.approx(of_class)
    assert best["iou/background"] == pytest.approx(of_background)
    assert of_class > 0


def test_a_training_that_waits_for_its_first_batch_stops_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "PATIENCE", 0.02)
    monkeypatch.setattr(Drawn, "image", lambda self, index: time.sleep(0.3))
    with pytest.raises(Interrupted):
        run(tmp_path, workers=1, stop_after=0)
    assert read_checkpoint(tmp_path)[0]["updates"] == 0
