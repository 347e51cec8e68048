"""Run a function in several processes of one group: forks of this process, which find each other by a file."""

import os
import pickle
import signal
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from segkit.compat import leave_process_group
from segkit.training import Ranks

TIMEOUT = 60  # seconds


def on_ranks(count, function, folder):
    """Return the result of `function(ranks)` in each of `count` processes; fail with their tracebacks if one fails."""
    folder.mkdir(exist_ok=True)
    children = [_start(rank, count, function, folder) for rank in range(count)]
    deadline = time.monotonic() + TIMEOUT
    codes = [_wait(child, deadline) for child in children]
    results = [(folder / f"{rank}.pickle") for rank in range(count)]
    assert codes == [0] * count, "\n".join(path.read_bytes().decode(errors="replace") for path in results)
    return [pickle.loads(path.read_bytes()) for path in results]


@contextmanager
def group(rank, count, folder):
    """Make this process a member of a group."""
    os.environ.update(GLOO_SOCKET_IFNAME="lo", RANK=str(rank))
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=TIMEOUT))
    try:
        yield Ranks(rank, count, store=dist.PrefixStore("messages", store))
    finally:
        leave_process_group()


def _start(rank, count, function, folder):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with group(rank, count, folder) as ranks:
            result = pickle.dumps(function(ranks))
        code = 0
    except BaseException:
        result = traceback.format_exc().encode()
    finally:
        (folder / f"{rank}.pickle").write_bytes(result)
        os._exit(code)


def _wait(child, deadline):
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
