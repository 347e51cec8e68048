"""Training in a hostile world: a second training, a full disk, dead workers, another user, signals."""

import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from helpers.commands import at_forward, fails, train_arguments
from helpers.shapes import write_shapes
from PIL import Image

from segkit.cli import train
from segkit.runs import RunLock
from segkit.workflows.run import Start

ROOT = Path(__file__).parents[2]
NOBODY = 65534


def start(*arguments, **options):
    command = [sys.executable, "-m", "segkit", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def children(pid):
    """Return the living child processes of `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended meanwhile
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")


def in_another_process(act):
    """Return, as text, what `act` raised in a child process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
            message = ""
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        return file.read()


def test_a_folder_is_locked_by_one_training_until_it_ends(tmp_path):
    def take():
        with RunLock() as lock:
            lock.take(tmp_path)

    with RunLock() as lock:
        lock.take(tmp_path)
        assert in_another_process(take).startswith(f"UsageError: another process writes to {tmp_path}; wait")
    assert in_another_process(take) == ""
    with RunLock() as lock:
        lock.take(tmp_path / "missing")


def test_children_of_a_training_do_not_keep_its_folder_locked(tmp_path):
    with RunLock() as lock:
        lock.take(tmp_path)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)

    def is_free():
        try:
            with RunLock() as lock:
                lock.take(tmp_path)
        except ValueError:
            return False
        return True

    try:
        wait_for(is_free, seconds=30)  # as soon as the child runs
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_in_the_same_folder_is_refused(shapes, tmp_path, capsys, resume):
    out = tmp_path / "a"
    if resume:
        train.main(train_arguments(shapes, out, "--epochs", "1"))
        before = (out / "last.pt").read_bytes()
        arguments = ["--resume", str(out), "--epochs", "2"]
    else:
        out.mkdir()
        arguments = train_arguments(shapes, out)
    with RunLock() as lock:
        lock.take(out)
        assert fails(train, *arguments) == 2
    assert f"another process writes to {out}; wait until it ends" in capsys.readouterr().err
    assert ((out / "last.pt").read_bytes() == before) if resume else not any(out.iterdir())


def test_a_disk_that_is_nearly_full_is_a_warning_at_the_start(shapes, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "1"))
    size = (tmp_path / "a" / "last.pt").stat().st_size
    printed = capsys.readouterr().err
    assert f"warning: {tmp_path / 'a'} has room for 2 MB, but the run needs about " in printed
    needed = int(printed.partition("needs about ")[2].partition(" MB")[0])
    assert needed * 1e6 == pytest.approx(3 * size, rel=0.1)


def test_a_class_without_validation_pixels_is_one_warning(shapes, tmp_path, capsys):
    val = write_shapes(tmp_path, "val", 2, seed=5)
    text = val.read_text()
    val.write_text(text.replace('"category_id": 3', '"category_id": 7'))
    train.main(train_arguments((shapes[0], val), tmp_path / "a", "--epochs", "2"))
    assert capsys.readouterr().err.count("warning: no validation image shows square: the IoU of such a class") == 1


def test_a_set_smaller_than_a_batch_trains_with_a_note(shapes, tmp_path, capsys):
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "1", "--batch-size", "50"))
    assert "fewer images than a batch holds: each step takes all 12 of them" in capsys.readouterr().out


def test_a_folder_of_another_user_is_an_error_before_the_data_is_read():
    with TemporaryDirectory() as name:  # other users may not enter the folders above tmp_path
        folder = Path(name)
        folder.chmod(0o755 if os.getuid() == 0 else 0o555)

        def act():
            if not os.getuid():
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            Start(folder / "a").check_folder()

        expected = f"UsageError: cannot write to {folder / 'a'}: Permission denied ({folder})"
        assert in_another_process(act) == expected


def test_nothing_is_written_next_to_the_data(tmp_path):
    folder = tmp_path / "data"
    shapes = write_shapes(folder, "train", 6, 1), write_shapes(folder, "val", 2, 2)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)  # root may write all the same, and the times below would show it
    before = {path: path.stat().st_mtime_ns for path in [*folder.rglob("*"), folder]}
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "1"))
    assert {path: path.stat().st_mtime_ns for path in [*folder.rglob("*"), folder]} == before


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no SIGUSR1")
def test_sigusr1_saves_in_the_middle_of_an_epoch_and_training_continues(shapes, tmp_path, caplog):
    out, steps, batches, scored = tmp_path / "a", [], itertools.count(), []

    def ask(model):
        if model.training:
            batch = next(batches)
            if batch == 1:
                signal.raise_signal(signal.SIGUSR1)
            elif batch == 2:
                steps.append(torch.load(out / "last.pt", weights_only=True)["step"])
        elif (out / "results.csv").is_file():  # Everything is saved: it does nothing.
            scored.append(1)
            signal.raise_signal(signal.SIGUSR1)

    with at_forward(ask):
        train.main(train_arguments(shapes, out, "--epochs", "1"))
    assert steps == [2]
    assert scored
    assert f"saved {out / 'last.pt'}, as asked; training continues" in caplog.text
    assert torch.load(out / "last.pt", weights_only=True)["epoch"] == 1


def test_a_signal_before_the_first_step_saves_after_it(shapes, tmp_path, monkeypatch):
    replace = os.replace

    def signalled(source, target):
        if Path(target).name == "env.json":  # written before the first step
            signal.raise_signal(signal.SIGTERM)
        replace(source, target)

    monkeypatch.setattr(os, "replace", signalled)
    assert fails(train, *train_arguments(shapes, tmp_path / "a", "--epochs", "1")) == 143
    assert torch.load(tmp_path / "a" / "last.pt", weights_only=True)["step"] == 1


def test_validation_workers_start_before_the_first_step_fills_the_memory(shapes, tmp_path):
    before, begun = set(active_children()), []
    with at_forward(lambda model: begun.append(set(active_children()) - before)):
        train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "1", "--workers", "1"))
    assert len(begun[0]) == 2  # one for training images, one for validation images
    assert set(active_children()) == before


def test_sigterm_while_the_demo_is_drawn_leaves_no_files(tmp_path, monkeypatch):
    def signalled(image, file, **options):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "save", signalled)
    assert fails(train) == 143
    assert list((tmp_path / "runs").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
@needs_proc
def test_a_killed_worker_is_one_sentence_and_the_run_can_be_resumed(shapes, tmp_path):
    out = tmp_path / "a"
    process = start(*train_arguments(shapes, out, "--epochs", "200", "--workers", "2"))
    wait_for((out / "last.pt").is_file)
    wait_for(lambda: len(children(process.pid)) >= 2)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    assert "Traceback" not in error
    assert error.count("segkit train: error: DataLoader worker") == 1
    assert error.endswith("Everything that was saved before is kept.\n")
    epoch = torch.load(out / "last.pt", weights_only=True)["epoch"]
    train.main(["--resume", str(out), "--epochs", str(epoch + 1), "--workers", "0"])
    assert len(list(csv.DictReader((out / "results.csv").open()))) == epoch + 1


def test_a_training_that_fails_leaves_no_workers(shapes, tmp_path):
    def fill(model):
        raise torch.OutOfMemoryError("of its own")

    before = set(active_children())
    with (
        at_forward(fill),
        pytest.raises(SystemExit) as stop,
    ):  # it keeps the frames of the training alive, and they keep the loaders
        train.main(train_arguments(shapes, tmp_path / "a", "--workers", "2"))
    assert stop.value.code == 1
    assert set(active_children()) == before


@pytest.mark.slow
@needs_proc
def test_ctrl_c_twice_leaves_whole_files_and_no_process_or_traceback(shapes, tmp_path):
    out = tmp_path / "a"
    options = ["--epochs", "500", "--workers", "2", "--save-every", "1"]
    process = start(*train_arguments(shapes, out, *options), start_new_session=True)
    wait_for((out / "last.prev.pt").is_file)
    wait_for(lambda: len(children(process.pid)) >= 2)
    workers = children(process.pid)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    wait_for(lambda: not any(alive(worker) for worker in workers), seconds=10)
    torch.load(out / "last.pt", weights_only=True)


def test_a_clock_that_is_set_back_does_not_change_the_times(shapes, tmp_path, monkeypatch):
    real, back = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(back))
    train.main(train_arguments(shapes, tmp_path / "a", "--epochs", "2"))
    times = [float(row["time"]) for row in csv.DictReader((tmp_path / "a" / "results.csv").open())]
    assert all(0 < seconds < 600 for seconds in times)


@pytest.mark.slow
def test_pictures_are_drawn_without_a_screen(shapes, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["MPLBACKEND"] = "TkAgg"  # asks for a window
    process = start(*train_arguments(shapes, tmp_path / "a", "--epochs", "1"), env=environment)
    _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    assert (tmp_path / "a" / "curves.png").is_file()
