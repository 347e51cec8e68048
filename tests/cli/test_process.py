"""Errors that end as a sentence, bugs that keep their traceback, and output that nobody reads any more."""

import errno
import io
import logging
import os
import pty
import signal
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.commands import fails, train_arguments

from segkit import errors
from segkit.cli import COMMANDS, train
from segkit.cli.process import BUG, errors_as_sentences, first_process_prints, output_may_close, with_flags
from segkit.config import CheckConfig, EvaluateConfig, FoldsConfig, TrainConfig
from segkit.console import Console, table

FULL = Path("/dev/full")
FROM_WORKER = """Caught {kind} in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/somewhere/torch/utils/data/_utils/worker.py", line 349, in _worker_loop
    data = fetcher.fetch(index)
  File "/somewhere/segkit/data/images.py", line 117, in read_image
    raise {kind}(
    ...<2 lines>...
    )
{module}{kind}: {message}
"""


def from_worker(kind, message, module=""):
    return kind(FROM_WORKER.format(kind=kind.__name__, message=message, module=module))


def outcome(error, command="train", settings=TrainConfig):
    """The exit code of a command that raises this error."""
    with pytest.raises(SystemExit) as stop, errors_as_sentences(command, settings):
        raise error
    return stop.value.code


class PlantedBug(list):
    """Arguments that cannot be read, as after a mistake of ours."""

    def __iter__(self):
        return iter(list(zip([1], [1, 2], strict=True)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bug_of_ours_keeps_its_traceback(command, capsys):
    face = import_module(f"segkit.cli.{command}")
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
        face.main(PlantedBug())
    assert "error:" not in capsys.readouterr().err


def test_a_bug_shows_its_line_and_that_it_is_to_be_reported():
    code = "import segkit.cli.train as t\ndef planted(): yield list(zip([1], [], strict=True))\nt.main(planted())\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "in planted" in done.stderr
    assert BUG in done.stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        *((errors.SegkitError, 2), (errors.UsageError, 2), (errors.MissingFileError, 2)),
        *((errors.MissingPackageError, 2), (errors.DataError, 3), (errors.NotFiniteError, 4)),
        *((errors.MachineError, 1), (errors.CheckpointError, 1), (errors.RanksError, 1)),
    ],
)
def test_each_error_of_ours_is_one_sentence_with_its_exit_code(kind, code, capsys):
    assert outcome(kind("a.jpg cannot be used")) == code
    assert capsys.readouterr().err == "segkit train: error: a.jpg cannot be used\n"


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, ImportError, RuntimeError, FloatingPointError])
def test_each_other_error_keeps_its_traceback(kind):
    with pytest.raises(kind), errors_as_sentences("train"):
        raise kind("something")


def test_what_is_raised_by_our_errors_can_be_caught_as_pythons_own():
    assert issubclass(errors.SegkitError, ValueError)
    assert issubclass(errors.MissingFileError, FileNotFoundError)
    assert issubclass(errors.MissingPackageError, ImportError)
    assert issubclass(errors.NotFiniteError, FloatingPointError)
    assert issubclass(errors.CheckpointError, OSError)


def test_a_dead_worker_is_one_sentence(capsys):
    assert outcome(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore")) == 1
    error = capsys.readouterr().err
    assert "DataLoader worker (pid 7) is killed by signal: Killed. A process that loads images died" in error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_one_sentence_with_a_remedy(capsys, error):
    assert outcome(error) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "; try half the --batch-size with twice the --accumulate" in said


def test_arguments_in_a_message_are_shown_as_flags(capsys):
    assert outcome(errors.UsageError('give `val`, or `on_bad="skip"`; see `model.eval` and `no_setting`')) == 2
    assert "give --val, or --on-bad skip; see `model.eval` and `no_setting`\n" in capsys.readouterr().err
    assert with_flags("`batch_size=2`", ["batch_size"]) == "--batch-size 2"


def test_warnings_are_sentences_with_flags_and_the_log_is_left_as_it_was(capsys):
    log = logging.getLogger("segkit.data")
    handlers = list(logging.getLogger("segkit").handlers)
    with errors_as_sentences("train", TrainConfig):
        shown = warnings.formatwarning("a.jpg is turned; see `exif`", errors.DataWarning, "x.py", 1)
        log.warning("%s is skipped", "b.jpg")
        log.info("saved")
    assert shown == "warning: a.jpg is turned; see --exif\n"
    assert capsys.readouterr().err == "warning: b.jpg is skipped\nsaved\n"
    assert logging.getLogger("segkit").handlers == handlers


def test_data_errors_of_a_worker_are_a_sentence_however_python_draws_their_lines(capsys):
    assert outcome(from_worker(errors.DataError, "a.jpg is damaged", "segkit.errors.")) == 3
    assert capsys.readouterr().err == "segkit train: error: a.jpg is damaged\n"


def test_a_workers_error_that_is_no_fault_of_the_data_keeps_its_traceback():
    error = from_worker(RuntimeError, "image 'a.jpg': no such key")
    with pytest.raises(RuntimeError, match=r"image 'a\.jpg': no such key"), errors_as_sentences("train"):
        raise error


def test_memory_that_runs_out_in_a_worker_is_a_sentence(capsys):
    assert outcome(from_worker(RuntimeError, "DefaultCPUAllocator: can't allocate memory")) == 1
    error = capsys.readouterr().err
    assert "memory ran out (DefaultCPUAllocator: can't allocate memory); try half the --batch-size" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (EvaluateConfig, "; try --window 512, or fewer views"),
        (CheckConfig, "; try a lower --max-pixels, above which images are not decoded"),
        (FoldsConfig, ""),
    ],
)
def test_advice_about_memory_names_only_settings_of_the_command(settings, advice, capsys):
    with pytest.raises(SystemExit) as stop, errors_as_sentences("x", settings):
        raise MemoryError
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"segkit x: error: memory ran out{advice}\n"


def test_a_full_disk_is_a_sentence_whoever_was_writing(capsys):
    assert outcome(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a.png")) == 1
    assert "cannot write runs/a.png: No space left on device\n" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\x1b[31m", "\r", "\x9b2J", "\u202e"])
def test_names_cannot_command_the_terminal(text, capsys):
    with errors_as_sentences("train", TrainConfig):
        for kind in (errors.DataWarning, UserWarning):  # of segkit, and of another library
            sys.stderr.write(warnings.formatwarning(f"a{text}.png", kind, "", 0))
        logging.getLogger("segkit.data").warning("a%s.png", text)
        Console(verbose=True).print(f"a{text}.png\n\ttwo lines")
    assert outcome(errors.DataError(f"a{text}.png")) == 3
    shown = capsys.readouterr()
    escaped = repr(text).strip("'")
    assert shown.out == f"a{escaped}.png\n\ttwo lines\n"
    assert shown.err.count(f"a{escaped}.png") == 4
    assert text not in shown.err


def test_a_name_in_a_table_stays_in_its_cell():
    assert table(["class"], [["a\x1b[31m\nb"]]) == ["class", "a\\x1b[31m\\nb"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jpg"), "cannot use a.jpg: Too many open files"),
        (from_worker(OSError, "[Errno 24] Too many open files: 'a.jpg'"), "too many files are open"),
        (RuntimeError("Too many open files. Communication with the workers"), "too many files are open"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "this user may not start more processes"),
        (from_worker(BlockingIOError, "Resource temporarily unavailable"), "this user may not start more processes"),
        (RuntimeError("can't start new thread"), "this user may not start more threads"),
    ],
)
def test_a_limit_of_the_machine_is_a_sentence_and_no_fault_of_the_data(error, message, capsys):
    assert outcome(error) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"segkit train: error: {message}")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_reports_a_loss_that_is_not_finite(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    assert outcome(errors.NotFiniteError("the loss is nan")) == 4
    assert ("the loss is nan" in capsys.readouterr().err) == (rank == "0")


def test_a_path_that_the_system_refuses_is_a_sentence(shapes, tmp_path, capsys):
    assert fails(train, *train_arguments(shapes, tmp_path / ("x" * 300))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "File name too long" in error


@pytest.mark.skipif(not FULL.exists(), reason="needs a file that is always full")
def test_output_to_a_full_disk_is_dropped(monkeypatch):
    with FULL.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with output_may_close():
            print("x" * 100_000)
            print("the work continues", flush=True)
        assert sys.stdout is stream


def test_names_that_the_output_cannot_encode_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with output_may_close():
        print("猫")
    assert written.getvalue() == b"\\u732b\n"


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_only_the_first_process_prints_and_warns_of_the_data(rank, monkeypatch, capsys):
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with warnings.catch_warnings(record=True) as warned, first_process_prints():
        warnings.warn("a.jpg is gray", errors.DataWarning, stacklevel=1)
        print("epoch 1")
    is_first = rank != "1"
    assert (capsys.readouterr().out == "epoch 1\n", len(warned) == 1) == (is_first, is_first)


AT_A_TERMINAL = """
import sys, time
from pathlib import Path
from segkit.cli.process import errors_as_sentences
folder = Path(sys.argv[1])
with errors_as_sentences("train"):
    print("begun", flush=True)
    while not (folder / "closed").exists():
        time.sleep(0.01)
    print("nobody reads this", flush=True)
    print("nor this", file=sys.stderr, flush=True)
    (folder / "ended").write_text("whole")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_a_command_continues_when_its_terminal_is_closed(tmp_path):
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", AT_A_TERMINAL, str(tmp_path)])
    assert os.read(terminal, 5) == b"begun"
    os.close(terminal)  # the system sends SIGHUP
    (tmp_path / "closed").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "ended").read_text() == "whole"


def test_a_hangup_ends_a_program_again_after_the_command():
    before = signal.getsignal(signal.SIGHUP)
    with errors_as_sentences("train"):
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is before is signal.SIG_DFL


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("own", [None, "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_a_command_lets_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch, capsys, command, own):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that the variable is as before after the test
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv(own, "7")
    with pytest.raises(SystemExit):
        import_module(f"segkit.cli.{command}").main(["--help"])
    found = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    assert found == ({own: "7"} if own else {"GOMP_SPINCOUNT": "10000"})
