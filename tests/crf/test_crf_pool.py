"""One pool for the module: a worker takes seconds to start, since it imports torch."""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from segkit.crf import DenseCRF
from segkit.errors import MachineError


def scenes(count=4):
    rng = np.random.default_rng(0)
    for number in range(count):
        image = rng.integers(0, 255, (20 + number, 24, 3), dtype=np.uint8)
        probs = rng.dirichlet(np.ones(3), image.shape[:2]).astype(np.float32)
        yield probs.transpose(2, 0, 1), image


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def pids_of(crf):
    return list(crf._pool._executor._processes)


@pytest.fixture(scope="module")
def pooled():
    with DenseCRF(workers=2) as crf:
        yield crf


def test_workers_return_the_bits_of_one_process_in_order(pooled):
    expected = [DenseCRF()(probs, image) for probs, image in scenes()]
    for got, want in zip(pooled.map(scenes()), expected, strict=True):
        assert np.array_equal(got, want)
    probs, image = next(scenes())
    batch = pooled(np.stack([probs, probs]), np.stack([image, image]))
    assert np.array_equal(batch[0], expected[0])
    assert np.array_equal(batch[1], expected[0])


def test_submit_returns_a_future(pooled):
    (probs, image), *_ = scenes()
    future = pooled.submit(probs, image)
    assert np.array_equal(future.result(timeout=60), DenseCRF()(probs, image))
    assert DenseCRF().submit(probs, image).done()
    with pytest.raises(ValueError, match="one image"):
        pooled.submit(probs[None], image[None])


def test_a_dead_worker_is_one_sentence_and_the_next_call_has_new_ones():
    # With pydensecrf, if it is installed, so that both engines run in a worker.
    backend = "pydensecrf" if importlib.util.find_spec("pydensecrf") else "torch"
    (probs, image), *_ = scenes()
    threads = set(threading.enumerate())
    crf = DenseCRF(backend=backend, workers=1)
    expected = DenseCRF(backend=backend)(probs, image)
    assert np.array_equal(crf(probs, image), expected)
    (pid,) = pids_of(crf)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(MachineError, match="a worker of DenseCRF ended"):
        crf(probs, image)
    assert np.array_equal(crf(probs, image), expected)
    pids, future = pids_of(crf), crf.submit(probs, image)
    del crf
    gc.collect()
    # All has ended with the object, without a close: a thread that still closes its pipe could fail at exit.
    assert set(threading.enumerate()) == threads
    assert not any(map(is_alive, pids))
    assert np.array_equal(future.result(timeout=0), expected)


def test_close_ends_the_workers(pooled):
    (probs, image), *_ = scenes()
    pooled(probs, image)
    pids = pids_of(pooled)
    pooled.close()
    assert wait_for_end(pids)


KILLED = """
import numpy as np
from segkit.crf import DenseCRF

if __name__ == "__main__":
    crf = DenseCRF(workers=1)
    crf(np.full((2, 4, 4), 0.5, np.float32), np.zeros((4, 4, 3), np.uint8))
    print(*crf._pool._executor._processes, flush=True)
    input()
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": os.getcwd()}, **pipes) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert pids
    assert wait_for_end(pids)


@pytest.mark.slow
def test_a_script_without_a_main_guard_gets_a_hint(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(KILLED.replace('if __name__ == "__main__":', "if True:"))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert "MachineError: a worker of DenseCRF ended" in done.stderr
    assert '`if __name__ == "__main__":`' in done.stderr
