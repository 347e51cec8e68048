import ctypes
import subprocess
import sys

import pytest

from segkit.training import keep_memory

FAULTS = """
import resource, torch
from segkit.training import keep_memory
keep_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**25); first = faults()
torch.ones(2**25 - 1024); print(faults() - first)  # smaller, since aligned memory takes a little more than it has
"""


def has_mallopt():
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not has_mallopt(), reason="the C library is not glibc")
def test_memory_that_was_freed_is_taken_again_without_asking_the_system():
    printed = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 1000  # of the 32768 pages


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_memory()


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_memory()
