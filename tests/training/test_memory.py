import ctypes
import subprocess
import sys

import pytest

from segkit.training import keep_memory, release_memory

FAULTS = """
import resource, torch
from segkit.training import keep_memory
keep_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**25); first = faults()
torch.ones(2**25 - 1024); print(faults() - first)  # smaller, because alignment needs a little more memory
"""

RETURNED = """
import torch
from pathlib import Path
from segkit.training import keep_memory, release_memory
keep_memory()
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1])  # pages
parts = [torch.ones(2**18) for _ in range(64)]
large = resident(); del parts; kept = resident(); release_memory(); print(large - kept, kept - resident())
"""


def has_mallopt():
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not has_mallopt(), reason="the C library is not glibc")
@pytest.mark.slow
def test_freed_memory_is_used_again_without_page_faults():
    printed = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 1000  # of the 32768 pages


@pytest.mark.skipif(not has_mallopt(), reason="the C library is not glibc")
@pytest.mark.slow
def test_kept_memory_is_returned_on_request():
    printed = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True).stdout
    by_itself, released = map(int, printed.split())
    assert by_itself < 1000 < 15000 < released  # of 16384 pages


def test_nothing_happens_with_another_c_library(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_memory()
    assert not release_memory()


def test_nothing_happens_on_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_memory()
    assert not release_memory()
