"""load_smp_checkpoint: a model trained with segmentation_models_pytorch as a Segmenter with the same output.

Source: Iakubovskii, "Segmentation Models Pytorch", https://github.com/qubvel-org/segmentation_models.pytorch; names,
shapes and defaults of version 0.6.0.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from segkit.errors import UsageError
from segkit.models.factory import create_model
from segkit.models.segmenter import Segmenter
from segkit.models.smp_encoders import PREFIX, find_variant
from segkit.models.smp_files import read_smp_weights
from segkit.models.smp_keys import is_dead, map_keys
from segkit.models.smp_options import SMP_NAMES, as_plain, find_architecture, translate_options

PLACES = ("architecture", "encoder_name", "classes")  # arguments with a place of their own


def load_smp_checkpoint(
    source: str | os.PathLike | Mapping[str, Any],
    architecture: str,
    encoder_name: str,
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    **smp_kwargs: Any,
) -> Segmenter:
    """Builds the Segmenter that gives the logits of a model trained with segmentation_models_pytorch.

    SMP itself is not needed, nothing is downloaded, and no code in the file is run. The model is an ordinary one:
    `save_model` and `load_model` keep it without anything of SMP's.

    Args:
        source: A .pth or .safetensors file, a folder written by SMP's `save_pretrained` (whose settings become the
            defaults), or a state dict; plain, under `state_dict`, `model` and the like, or with a prefix (`module.`).
        architecture: `DeepLabV3Plus`, `FPN` or `Unet`.
        encoder_name: SMP's name: `resnet50`, `se_resnext50_32x4d`, `efficientnet-b4`, `timm-efficientnet-b4`,
            `tu-convnext_tiny`, ...
        num_classes: SMP's `classes`.
        class_names: In index order.
        **smp_kwargs: The other arguments that SMP's model was built with, under SMP's names and with SMP's
            defaults; `encoder_weights` tells only how the images were normalised.

    Returns:
        The model in eval mode: (N, in_channels, H, W) -> (N, num_classes, H, W) logits, at any size; at the sizes
        that SMP takes they are its own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown or unsupported argument, an unreadable file, or weights of another model.
    """
    name = find_architecture(architecture)
    weights, settings = read_smp_weights(source)
    if smp_kwargs.get("classes", num_classes) != num_classes:
        raise UsageError(f"classes={smp_kwargs['classes']} is not num_classes={num_classes}")
    given = {"architecture": name, "encoder_name": encoder_name, **smp_kwargs, "classes": num_classes}
    options = _merge(settings, given)
    encoder_weights = options.pop("encoder_weights", None)
    model = create_model(
        name,
        backbone=_find_backbone(encoder_name),
        num_classes=num_classes,
        class_names=class_names,
        **translate_options(name, {key: value for key, value in options.items() if key not in PLACES}),
    )
    model.load_state_dict(_select(weights, model, name, encoder_name))
    if encoder_weights == "advprop":  # trained with other images: Xie et al., "Adversarial Examples", 2020
        half = (0.5,) * len(model.preprocessing.mean)
        model.preprocessing = replace(model.preprocessing, mean=half, std=half)
    return model.eval()


def _find_backbone(encoder_name: str) -> str:
    if encoder_name.startswith("tu-"):
        return encoder_name.removeprefix("tu-")
    find_variant(encoder_name)
    return PREFIX + encoder_name


def _merge(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Joins a folder's settings and what the caller says, which may not disagree."""
    stored = {key: value for key, value in stored.items() if not key.startswith("_")}
    for key in stored.keys() & given.keys() - {"encoder_weights"}:
        if as_plain(stored[key]) != as_plain(given[key]):
            raise UsageError(f"{key} is {given[key]!r}, but the checkpoint's config.json says {stored[key]!r}")
    return {**stored, **given}


def _select(weights: Mapping[str, Tensor], model: Segmenter, name: str, encoder_name: str) -> dict[str, Tensor]:
    """Picks the model's tensors out of SMP's, by our keys, and makes sure that all of them fit and none is left."""
    target = model.state_dict()
    key_of = map_keys(target, name, encoder_name)
    wrong = [
        f"{smp!r} expected {tuple(target[key].shape)}, got {tuple(weights[smp].shape)}"
        for key, smp in key_of.items()
        if smp in weights and weights[smp].shape != target[key].shape
    ]
    counters = {smp for smp in (*key_of.values(), *weights) if smp.endswith("num_batches_tracked")}
    missing = [f"{smp!r} is missing" for smp in key_of.values() if smp not in weights and smp not in counters]
    expected = {*key_of.values(), *counters}
    foreign = [f"{smp!r} is unexpected" for smp in weights if smp not in expected and not is_dead(smp, encoder_name)]
    if wrong or missing or foreign:
        some = [*wrong[:2], *missing[:2], *foreign[:2]]
        raise UsageError(
            f"the weights are not those of SMP's {SMP_NAMES[name]} with encoder {encoder_name!r} and these options: "
            f"{len(wrong)} of another shape, {len(missing)} missing, {len(foreign)} unexpected; {'; '.join(some)}"
        )
    return {key: weights.get(smp, target[key]) for key, smp in key_of.items()}
