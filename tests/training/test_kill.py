"""A run that is killed (-9) while it writes can be resumed, and ends with the same results."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.tiny_training import forked, outcome, run, same

EPOCHS = 1
CALLS = ("fsync", "replace", "link", "write")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out, epochs=EPOCHS, save_every=2)
    return outcome(out)


class HalfWriter:
    """Writes the first half of the content, then kills the process."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        kill()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def run_killed_at(out, name, number, before):
    """Train until the `number`th call of a function of `os`, or write to a temporary file."""
    count = iter(range(number + 1))
    real = Path.open if name == "write" else getattr(os, name)

    def counted(*args, **options):
        due = next(count, None) == number
        if due and before:
            kill()
        result = real(*args, **options)
        if due:
            kill()
        return result

    def opened(path, mode="r", *args, **options):
        file = real(path, mode, *args, **options)
        return HalfWriter(file) if mode == "wb" and next(count, None) == number else file

    if name == "write":
        Path.open = opened
    else:
        setattr(os, name, counted)
    run(out, epochs=EPOCHS, save_every=2)


def count_calls(out):
    """Return how often a run calls each of the functions."""
    found = dict.fromkeys(CALLS, 0)

    def counting(name, real):
        def call(*args, **options):
            found[name] += name != "write" or args[1:2] == ("wb",)
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            owner, attribute = (Path, "open") if name == "write" else (os, name)
            patch.setattr(owner, attribute, counting(name, getattr(owner, attribute)))
        run(out, epochs=EPOCHS, save_every=2)
    return found


def assert_resumes(out, whole):
    saved = (out / "last.pt").exists()
    assert saved or not (out / "last.prev.pt").exists()  # there is a checkpoint at every moment after the first save
    assert forked(lambda: run(out, epochs=EPOCHS, save_every=2, resume=saved)) == 0
    assert same(outcome(out), whole)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "number"),
    [("fsync", 0), pytest.param("write", 1, marks=pytest.mark.slow), ("replace", 1), ("link", 0)],
)
def test_a_run_killed_while_it_writes_resumes(whole, tmp_path, name, number):
    assert forked(lambda: run_killed_at(tmp_path, name, number, before=True)) == -signal.SIGKILL
    assert_resumes(tmp_path, whole)


@pytest.mark.slow
def test_a_run_killed_at_every_write_sync_link_and_rename_resumes(whole, tmp_path):
    found = count_calls(tmp_path / "counted")
    assert min(found.values()) >= 2
    moments = [(name, n, before) for name, total in found.items() for n in range(total) for before in (True, False)]
    moments = [moment for moment in moments if moment[0] != "write" or moment[2]]  # a write is killed halfway, once
    for i, moment in enumerate(moments):
        out = tmp_path / str(i)
        assert forked(lambda out=out, moment=moment: run_killed_at(out, *moment)) == -signal.SIGKILL, moment
        assert_resumes(out, whole)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_resumes(whole, tmp_path):
    moments = random.Random(0)
    for i in range(20):
        out = tmp_path / str(i)
        out.mkdir()
        child = os.fork()
        if child == 0:
            run(out, epochs=EPOCHS, save_every=1)
            os._exit(0)
        while i % 2 and not (out / "last.pt").exists():  # every other run is killed after its first save
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert_resumes(out, whole)
