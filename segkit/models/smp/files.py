"""Read the weights of an SMP model from the kinds of files and dicts that people store them in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from segkit.errors import MissingFileError, UsageError
from segkit.files import parse_json, read_text
from segkit.models.smp.keys import HEAD
from segkit.models.smp.options import find_architecture
from segkit.models.weights_file import read_weights_file

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
        if not isinstance(settings, dict) or not isinstance(settings.get("_model_class", ""), str):
            raise UsageError(f"{file} does not hold the settings of an SMP model")
        if "_model_class" in settings:
            settings["architecture"] = find_architecture(settings["_model_class"])
        path = path / "model.safetensors"
    return _strip_prefix(_unwrap(read_weights_file(path), path), path), settings


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
    weights = {key: value for key, value in weights.items() if isinstance(key, str)}
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
