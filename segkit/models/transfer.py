"""transfer_weights: start a model from the weights of another one with other classes."""

import copy
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from segkit.errors import UsageError
from segkit.models.model_file import load_model
from segkit.models.segmenter import Segmenter


def transfer_weights(model: Segmenter, source: str | os.PathLike | Segmenter) -> list[str]:
    """Copy the weights and the preprocessing of another model into `model`; its heads are matched by class name.

    An auxiliary head that only one of the two models has is ignored.

    Args:
        model: A model of the same architecture; changed in place.
        source: A model file or its folder, see `load_model`; or a loaded model, which is not changed.

    Returns:
        The classes that the source does not have; their part of the heads keeps its values.

    Raises:
        MissingFileError: There is no such file.
        UsageError: The file was not written by segkit, or has another architecture.
    """
    name = "the model" if isinstance(source, Segmenter) else source
    source = source if isinstance(source, Segmenter) else load_model(source)
    if not isinstance(source, Segmenter):
        raise UsageError(f"{name} has no weights to start from, as an ONNX file is only for inference")
    theirs, ours = (
        {key: value for key, value in (made.config or {}).items() if key not in ("aux_head", "image_head")}
        for made in (source, model)
    )
    if theirs != ours:
        raise UsageError(f"cannot start from {name}, it has another architecture: {differences(theirs, ours)}")
    own, layers, taught = model.state_dict(), class_layers(model), class_layers(source)
    untaught = {name: copy.deepcopy(layer.state_dict()) for name, layer in layers.items()}
    fitting = {key: value for key, value in source.state_dict().items() if key in own and value.shape == own[key].shape}
    model.load_state_dict(fitting, strict=False)
    known = {name: i for i, name in enumerate(source.class_names)}
    shared = [(new, known[name]) for new, name in enumerate(model.class_names) if name in known]
    for name in layers.keys() & taught.keys():
        layers[name].load_state_dict(untaught[name])
        for tensor, other in zip(layers[name].parameters(), taught[name].parameters(), strict=True):
            for new, old in shared:
                tensor.data[new] = other.data[old]
    model.preprocessing = source.preprocessing
    return [name for name in model.class_names if name not in known]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the first three entries in which two mappings differ."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    listed = "; ".join(f"{key} is {before.get(key)} there, {now.get(key)} here" for key in keys[:3])
    return listed + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def class_layers(model: Segmenter) -> dict[str, nn.Module]:
    """Return the last layer of each head, whose outputs are the classes, by the name of the head."""
    heads = {name: getattr(model, name) for name in ("head", "aux_head", "image_head")}
    return {
        name: head[-1] if isinstance(head, nn.Sequential) else head for name, head in heads.items() if head is not None
    }
