"""The environment of a workflow: its device, its number of loader processes, and env.json, which records it."""

import json
import os
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from segkit._version import __version__
from segkit.errors import UsageError
from segkit.files import write_whole

PACKAGES = ("torch", "torchvision", "timm", "albumentations", "numpy", "opencv-python-headless", "Pillow")


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


def write_environment(file: Path, device: torch.device, command: str = "") -> dict[str, Any]:
    """Write env.json and return what it says; a resumed run keeps what it ran on before under `earlier`.

    It has versions, device and time, but never environment variables, which may hold secrets.

    Args:
        file: The JSON file.
        device: The device of the model.
        command: The command line of a command. A program that calls segkit has none here: its arguments are its own,
            and may hold secrets.
    """
    is_cuda = device.type == "cuda"
    now = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        **({"command": command} if command else {}),
        "segkit": __version__,
        "python": platform.python_version(),
        **{name: _version_of(name) for name in PACKAGES},
        "device": f"{device}, {torch.cuda.get_device_name(device)}" if is_cuda else f"{device}",
        "cores": count_cores(),
        "platform": platform.platform(),
    }
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file does not exist, or somebody has changed it
        earlier = {}
    is_kept = isinstance(earlier, dict) and earlier
    content = {**now, "earlier": [*earlier.pop("earlier", []), earlier]} if is_kept else now
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return now


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # for example another build of OpenCV
        return "not found"
