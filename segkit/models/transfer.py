"""transfer_weights: start a model from the weights of another one with other classes."""

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from segkit.errors import UsageError
from segkit.models.model_file import load_model
from segkit.models.segmenter import Segmenter


def transfer_weights(model: Segmenter, path: str | os.PathLike) -> list[str]:
    """Copy the weights and the preprocessing of a model file into `model`; its heads are matched by class name.

    Args:
        model: A model of the same architecture; changed in place.
        path: A model file or its folder, see `load_model`.

    Returns:
        The classes that the file does not have; their part of the heads keeps its values.

    Raises:
        MissingFileError: There is no such file.
        UsageError: The file was not written by segkit, or has another architecture.
    """
    source = load_model(path)
    if source.config != model.config:
        raise UsageError(
            f"cannot start from {path}, it has another architecture: {differences(source.config, model.config)}"
        )
    own, given, layers = model.state_dict(), source.state_dict(), list(class_layers(model))
    untaught = [copy.deepcopy(layer.state_dict()) for layer in layers]
    model.load_state_dict({key: value for key, value in given.items() if value.shape == own[key].shape}, strict=False)
    known = {name: i for i, name in enumerate(source.class_names)}
    shared = [(new, known[name]) for new, name in enumerate(model.class_names) if name in known]
    for layer, taught, start in zip(layers, class_layers(source), untaught, strict=True):
        layer.load_state_dict(start)
        for tensor, other in zip(layer.parameters(), taught.parameters(), strict=True):
            for new, old in shared:
                tensor.data[new] = other.data[old]
    model.preprocessing = source.preprocessing
    return [name for name in model.class_names if name not in known]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the first three entries in which two mappings differ."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    listed = "; ".join(f"{key} is {before.get(key)} there, {now.get(key)} here" for key in keys[:3])
    return listed + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def class_layers(model: Segmenter) -> Iterator[nn.Module]:
    """Yield the last layer of each head, whose outputs are the classes."""
    for head in (model.head, model.aux_head, model.image_head):
        if head is not None:
            yield head[-1] if isinstance(head, nn.Sequential) else head
