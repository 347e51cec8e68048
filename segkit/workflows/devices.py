"""The device and the number of loader processes of a workflow."""

import os

import torch

from segkit.errors import UsageError


def pick_device(name: str) -> torch.device:
    """Return the device with this name; `auto` is CUDA if there is a GPU, otherwise the CPU.

    Raises:
        UsageError: The name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown `device` {name!r}, expected auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"`device={name}`: torch finds no CUDA GPU on this machine")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"`device={name}`: this machine has {torch.cuda.device_count()} GPUs, counted from cuda:0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"`device={name}`: torch finds no Apple GPU on this machine")
    return device


def count_cores() -> int:
    """Return the number of cores that this process may use; on macOS and Windows, of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_workers(workers: int | None, processes: int = 1) -> int:
    """Return `workers`, or by default this process's share of the cores, at most eight."""
    return max(1, min(8, count_cores() // processes)) if workers is None else workers
