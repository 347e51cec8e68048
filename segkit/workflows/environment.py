"""What a run ran on: versions, device and time. Never environment variables, which may hold secrets."""

import json
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from segkit._version import __version__
from segkit.files import write_whole
from segkit.workflows.devices import count_cores

PACKAGES = ("torch", "torchvision", "timm", "albumentations", "numpy", "opencv-python-headless", "Pillow")


def write_environment(file: Path, device: torch.device, command: str = "") -> dict[str, Any]:
    """Write env.json and return what it says; a resumed run keeps what it ran on before under `earlier`.

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
    earlier = _read(file)
    content = {**now, "earlier": [*earlier.pop("earlier", []), earlier]} if earlier else now
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return now


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file does not exist, or somebody has changed it
        return {}
    return content if isinstance(content, dict) else {}


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # for example another build of OpenCV
        return "not found"
