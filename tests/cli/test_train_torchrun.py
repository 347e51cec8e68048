"""torchrun train.py: one process fails, is killed or is asked to stop, and the run is resumed."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.commands import train_arguments

from segkit.cli import train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
TIMEOUT = 120  # seconds
# Runs train.py. At the start of update UPDATE, process RANK executes the statement WHAT, unless it was restarted.
SABOTAGED = """
import os, signal, sys
from segkit.cli import train
from segkit.training import trainer

rank, update, what = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
real = trainer.pixel_shares
calls = iter(range(10**6))

def pixel_shares(*args):
    if next(calls) == update and int(os.environ["RANK"]) == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        exec(what)
    return real(*args)

trainer.pixel_shares = pixel_shares
train.main()
"""


@pytest.fixture
def torchrun(shapes, tmp_path):
    """Return a function that runs train.py in several processes; `sabotage` is (rank, update, statement)."""

    def call(*arguments, processes=2, sabotage=None, restarts=0):
        script = ["train.py"]
        if sabotage is not None:
            (tmp_path / "sabotaged.py").write_text(SABOTAGED)
            script = [str(tmp_path / "sabotaged.py"), *map(str, sabotage)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [
            *launcher,
            "--max-restarts",
            str(restarts),
            *script,
            *train_arguments(shapes, tmp_path / "a"),
            *arguments,
        ]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
        try:
            out, error = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return process.returncode, out, error

    yield call
    assert not processes_that_train(tmp_path / "a")


def processes_that_train(out):
    """Return the processes whose command line names the run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            found += [entry.name] if entry.name.isdigit() and str(out) in (entry / "cmdline").read_text() else []
        except OSError:
            continue
    return found


def results(out):
    return list(csv.DictReader((out / "results.csv").open()))


def epochs(out):
    return [row["epoch"] for row in results(out)]


def test_processes_write_what_one_writes_and_the_first_prints(shapes, tmp_path, torchrun):
    code, printed, error = torchrun("--epochs", "2", "--decoder", "norm=group", "--ema", "0.9", "--accumulate", "2")
    assert code == 0, error
    assert printed.count("ranks  2 processes, each with 2 of a batch's 4 crops") == 1
    assert printed.count("use it: python infer.py") == 1
    train.main(train_arguments(shapes, tmp_path / "b", "--epochs", "2", "--decoder", "norm=group", "--ema", "0.9"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
    for name in ("model", "ema"):
        here, there = (torch.load(tmp_path / run / "last.pt", weights_only=True)[name] for run in "ab")
        assert list(here) == list(there)


def test_after_a_process_is_killed_all_restart_and_each_epoch_is_there_once(tmp_path, torchrun):
    kill = (1, 5, "os.kill(os.getpid(), signal.SIGKILL)")  # in the second epoch of three updates
    code, printed, error = torchrun("--epochs", "3", "--resume", "auto", sabotage=kill, restarts=1)
    assert code == 0, error
    assert f"resuming {tmp_path / 'a'} after epoch 1" in printed
    assert epochs(tmp_path / "a") == ["1", "2", "3"]
    code, printed, _ = torchrun("--epochs", "3", "--resume", "auto")
    assert code == 0
    assert printed.count("is already finished, at 3/3 epochs") == 1


def test_a_process_that_is_killed_before_the_first_checkpoint_starts_again(tmp_path, torchrun):
    kill = (1, 0, "os.kill(os.getpid(), signal.SIGKILL)")
    code, _, error = torchrun("--epochs", "1", "--resume", "auto", sabotage=kill, restarts=1)
    assert code == 0, error
    assert epochs(tmp_path / "a") == ["1"]


def test_sigterm_to_one_process_saves_and_stops_all(tmp_path, torchrun):
    started = time.monotonic()
    code, _, error = torchrun("--epochs", "50", sabotage=(1, 4, "os.kill(os.getpid(), signal.SIGTERM)"))
    assert code == 1
    assert time.monotonic() - started < 60
    assert f"stopped by SIGTERM; saved. To resume: python train.py --resume {tmp_path / 'a'}" in error
    assert f"exitcode  : {128 + signal.SIGTERM}" in error
    content = torch.load(tmp_path / "a" / "last.pt", weights_only=True)
    assert (content["epoch"], content["step"]) == (1, 2)


def test_an_unexpected_error_in_one_process_ends_all_and_its_traceback_is_shown(tmp_path, torchrun):
    code, _, error = torchrun("--epochs", "50", sabotage=(1, 4, "raise ZeroDivisionError('of process one')"))
    assert code == 1
    assert "ZeroDivisionError: of process one" in error
    assert "segkit train: error: process 0 of 2 cannot continue" in error
    assert epochs(tmp_path / "a") == ["1"]


def test_a_loss_that_is_not_finite_is_reported_once_with_its_exit_code(torchrun):
    code, _, error = torchrun("--epochs", "3", "--lr", "1e30", "--clip-grad", "0", "--warmup-epochs", "0")
    assert code == 1
    assert error.count("segkit train: error: the") == 1
    assert "exitcode  : 4" in error


def test_settings_that_do_not_fit_are_reported_once(torchrun):
    code, _, error = torchrun("--batch-size", "5")
    assert code == 1
    assert error.count("error: batches of 5 cannot be divided evenly among 2 processes; try --batch-size 6") == 1
    assert "exitcode  : 2" in error


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_is_resumed_by_another_number_of_processes(tmp_path, torchrun, before, after):
    code, _, error = torchrun("--epochs", "1", processes=before)
    assert code == 0, error
    code, _, error = torchrun("--epochs", "2", "--resume", "auto", processes=after)
    assert code == 0, error
    assert error.count(f"warning: the run had {before} processes and now has {after}:") == 1
    assert epochs(tmp_path / "a") == ["1", "2"]


def test_sync_bn_on_a_cpu_is_one_warning(torchrun):
    code, _, error = torchrun("--epochs", "1", "--sync-bn", "on")
    assert code == 0, error
    assert error.count("warning: --sync-bn needs CUDA and is off on cpu") == 1
