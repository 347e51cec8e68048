"""Weights files of other libraries, in the format of safetensors or torch.save. No code in them is run."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from segkit.errors import MissingFileError, UsageError, as_segkit_error
from segkit.files import check_readable


def read_weights_file(path: Path) -> Mapping[Any, Any]:
    """Return the dict in a .safetensors file, or in a file of torch.save (.pth and others).

    Args:
        path: The file.

    Raises:
        MissingFileError: There is no such file.
        UsageError: The file is damaged, has another format, holds no dict, or holds Python objects, whose loading runs
            code.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no weights file {path}")
    check_readable(path)
    problem = f"cannot read weights from {path} ({path.stat().st_size} bytes): the file is damaged"
    is_zip = zipfile.is_zipfile(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():  # torch itself does not compare the checksums
                    raise UsageError(problem)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # torch and safetensors raise errors of many kinds for other files
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused or (is_zip and isinstance(error, pickle.UnpicklingError)):
            raise UsageError(_how_to_extract(path, refused and refused[1])) from error
        fault = UsageError(f"{problem}, or is neither a safetensors file nor one of torch.save")
        raise as_segkit_error(error) or fault from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} has a {type(content).__name__}, expected a dict with the weights")
    return content


def _how_to_extract(path: Path, refused: str | None) -> str:
    weights = path.with_name(f"{path.stem}_weights.pth").name
    return (
        f"{path} has Python objects{f' ({refused})' if refused else ''} next to its weights, and loading them runs "
        "code from the file; on a machine where you trust it, extract the weights with\n"
        f"    checkpoint = torch.load({path.name!r}, map_location='cpu', weights_only=False)\n"
        "    torch.save(checkpoint.state_dict() if hasattr(checkpoint, 'state_dict') else {k: v for k, v in "
        f"checkpoint.items() if isinstance(v, dict) and all(map(torch.is_tensor, v.values()))}}, {weights!r})\n"
        f"and load {weights}"
    )
