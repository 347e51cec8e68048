"""load_smp_checkpoint: load a model of segmentation_models_pytorch (SMP) as a Segmenter with the same output.

Source: Iakubovskii, "Segmentation Models Pytorch", https://github.com/qubvel-org/segmentation_models.pytorch; names,
shapes and defaults are taken from version 0.6.0.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from segkit.errors import UsageError
from segkit.models.backbone import check_finite
from segkit.models.factory import create_model
from segkit.models.segmenter import Segmenter
from segkit.models.smp.encoders import SMP_PREFIX
from segkit.models.smp.files import read_smp_weights
from segkit.models.smp.keys import rename_weights
from segkit.models.smp.options import as_plain, find_architecture, translate_options

PLACES = ("architecture", "encoder_name", "classes")  # arguments of SMP that have their own argument here


def load_smp_checkpoint(
    source: str | os.PathLike | Mapping[str, Any],
    architecture: str,
    encoder_name: str,
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    **smp_kwargs: Any,
) -> Segmenter:
    """Load a model that was trained with SMP as a Segmenter that returns the same logits.

    SMP need not be installed, nothing is downloaded, and no code in the file is run. `save_model` and `load_model`
    work with the result as with any other Segmenter.

    Args:
        source: A .pth or .safetensors file, a folder that SMP's `save_pretrained` wrote (its settings are then the
            defaults), or a state dict. The weights may be an entry such as `state_dict` or `model`, and their keys
            may have a prefix such as `module.`.
        architecture: `DeepLabV3Plus`, `FPN` or `Unet`.
        encoder_name: SMP's name: `resnet50`, `se_resnext50_32x4d`, `efficientnet-b4`, `timm-efficientnet-b4`,
            `tu-convnext_tiny`, ...
        num_classes: SMP's `classes`.
        class_names: Names of the classes in index order. With `classes=1`, the name of label 1; the background, label
            0, has no channel.
        **smp_kwargs: The other arguments that the SMP model was built with, by SMP's names and with SMP's defaults.
            `encoder_weights` only says how the images were normalised.

    Returns:
        The model in eval mode: (N, in_channels, H, W) -> logits (N, num_classes, H, W) for any H and W. At sizes that
        SMP accepts the logits equal SMP's.

    Raises:
        MissingFileError: There is no such file.
        UsageError: An unknown or unsupported argument, an unreadable file, weights of another model, or weights that
            are not finite.
    """
    name = find_architecture(architecture)
    weights, settings = read_smp_weights(source)
    if smp_kwargs.get("classes", num_classes) != num_classes:
        raise UsageError(f"classes={smp_kwargs['classes']} is not num_classes={num_classes}")
    given = {"architecture": name, "encoder_name": encoder_name, **smp_kwargs, "classes": num_classes}
    # The settings of a folder are the defaults, but must not contradict an argument. `_model_class` and the like are
    # for SMP's own reader.
    stored = {key: value for key, value in settings.items() if not key.startswith("_")}
    for key in stored.keys() & given.keys() - {"encoder_weights"}:
        if as_plain(stored[key]) != as_plain(given[key]):
            raise UsageError(f"{key} is {given[key]!r}, but the checkpoint's config.json says {stored[key]!r}")
    options = {**stored, **given}
    encoder_weights = options.pop("encoder_weights", None)
    is_timm = encoder_name.startswith("tu-")
    model = create_model(
        name,
        backbone=encoder_name.removeprefix("tu-") if is_timm else SMP_PREFIX + encoder_name,
        num_classes=num_classes,
        class_names=class_names,
        **translate_options(name, {key: value for key, value in options.items() if key not in PLACES}),
    )
    check_finite(weights, "the dict" if isinstance(source, Mapping) else source)
    model.load_state_dict(rename_weights(weights, model.state_dict(), name, encoder_name))
    if encoder_weights == "advprop":  # trained on images in -1..1: Xie et al., "Adversarial Examples", 2020
        half = (0.5,) * len(model.preprocessing.mean)
        model.preprocessing = replace(model.preprocessing, mean=half, std=half)
    return model.eval()
