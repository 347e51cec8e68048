"""What a run ran on: versions, device, command and time; no secrets, and nothing of the process's environment."""

import json
import platform
import shlex
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit._version import __version__
from segkit.workflows.devices import count_cores

if TYPE_CHECKING:
    import torch

ENVIRONMENT = "env.json"
PACKAGES = ("torch", "torchvision", "timm", "albumentations", "numpy", "opencv-python-headless", "Pillow")


def describe_environment(device: "torch.device") -> dict[str, Any]:
    """Names and plain values."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "segkit": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": _device_name(device),
        "cores": count_cores(),
        "platform": platform.platform(),
    }


def write_environment(out: Path, device: "torch.device") -> dict[str, Any]:
    """Writes env.json, and gives what it says; a resumed run keeps what it ran on before under `earlier`."""
    from segkit.report import write_whole

    now, file = describe_environment(device), out / ENVIRONMENT
    earlier = _read(file)
    content = {**now, "earlier": [*earlier.pop("earlier", []), earlier]} if earlier else now
    write_whole(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return now


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or somebody has changed it
        return {}
    return content if isinstance(content, dict) else {}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # such as another build of OpenCV
        return "not found"


def _device_name(device: "torch.device") -> str:
    import torch

    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f"{device}"
