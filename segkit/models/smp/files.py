"""Read the weights of an SMP model from the kinds of files and dicts that people store them in."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segkit.errors import MissingFileError, UsageError
from segkit.files import check_readable, parse_json, read_text
from segkit.models.smp.keys import HEAD
from segkit.models.smp.options import find_architecture

NAMES_OF_WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "encoder")


def read_smp_weights(source: str | os.PathLike | Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict of an SMP model and the settings that are stored with it.

    Args:
        source: A .pth or .safetensors file, a folder that SMP's `save_pretrained` wrote, or the content of such a
            file. The weights may be an entry (`{"state_dict": ...}`), and their keys may have a prefix (`module.`).

    Returns:
        The tensors by SMP's keys; and the settings of a folder (`architecture`, `encoder_name`, ...), else none.

    Raises:
        MissingFileError: There is no such file.
        UsageError: The file cannot be read, or has no SMP model.
    """
    if isinstance(source, Mapping):
        return _strip_prefix(_unwrap(source, "the dict"), "the dict"), {}
    path, settings = Path(source), {}
    if path.is_dir():
        file = path / "config.json"
        if not file.is_file():
            raise MissingFileError(f"the folder {path} has no config.json, which SMP's save_pretrained writes")
        settings = parse_json(read_text(file), file)
        if "_model_class" in settings:
            settings["architecture"] = find_architecture(settings["_model_class"])
        path = path / "model.safetensors"
    return _strip_prefix(_unwrap(_read_file(path), path), path), settings


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"there is no weights file {path}")
    check_readable(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused or zipfile.is_zipfile(path):
            raise UsageError(_how_to_extract(path, refused and refused[1])) from error
        raise UsageError(f"{path} is not a weights file: torch.load cannot read it") from error
    except (SafetensorError, RuntimeError, EOFError, LookupError) as error:
        raise UsageError(f"cannot read weights from {path}: {error}") from error
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


def _unwrap(content: Mapping[str, Any], where: str | Path) -> Mapping[str, Any]:
    """Return the dict of tensors in `content`: itself, the entry with a usual name, or the only entry."""
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    inner = {
        key: value
        for key, value in content.items()
        if isinstance(value, Mapping) and any(isinstance(tensor, Tensor) for tensor in value.values())
    }
    for name in (*NAMES_OF_WEIGHTS, *(inner if len(inner) == 1 else ())):
        if name in inner:
            return inner[name]
    raise UsageError(f"there are no weights in {where}; its entries are {', '.join(map(str, content)) or 'none'}")


def _strip_prefix(weights: Mapping[str, Any], where: str | Path) -> dict[str, Tensor]:
    """Remove the prefix of a wrapper from SMP's keys, and drop keys without the prefix (a loss, a normalisation)."""
    mark = f"{HEAD}.weight"
    prefixes = [key.removesuffix(mark) for key in weights if key.endswith(mark)]
    if len(prefixes) != 1:
        found = f"has {len(prefixes)} SMP models, under {', '.join(map(repr, prefixes))}; pass the state dict of one"
        none = f"has no SMP model: there is no key {mark!r}, but {', '.join(list(weights)[:3])}, ..."
        raise UsageError(f"{where} {found if prefixes else none}")
    prefix = prefixes[0]
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
