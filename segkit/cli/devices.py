"""The device and the number of loader processes that a command runs with."""

import os

import torch


def pick_device(name: str) -> torch.device:
    """The device by name; `auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown --device {name!r}, expected auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no CUDA GPU that torch can use")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs, counted from cuda:0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {name}: this machine has no Apple GPU that torch can use")
    return device


def count_cores() -> int:
    """The cores that this process may use; on macOS and Windows, those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_workers(workers: int | None, processes: int = 1) -> int:
    """The given number, else one for each core that is this one's of so many processes, and at most eight."""
    return max(1, min(8, count_cores() // processes)) if workers is None else workers
