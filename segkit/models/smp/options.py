"""The arguments of SMP's models, their defaults, and their names in `create_model`."""

from collections.abc import Mapping
from typing import Any

from segkit.errors import UsageError
from segkit.names import unknown

SMP_NAMES = {"deeplabv3plus": "DeepLabV3Plus", "fpn": "FPN", "unet": "Unet"}

COMMON: dict[str, Any] = {"in_channels": 3, "encoder_depth": 5, "activation": None, "aux_params": None}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {
        "encoder_output_stride": 16,
        "decoder_channels": 256,
        "decoder_atrous_rates": (12, 24, 36),  # at every output stride
        "decoder_aspp_separable": True,
        "decoder_aspp_dropout": 0.5,
        "upsampling": 4,
        **COMMON,
    },
    "fpn": {
        "decoder_pyramid_channels": 256,
        "decoder_segmentation_channels": 128,
        "decoder_merge_policy": "add",
        "decoder_dropout": 0.2,
        "decoder_interpolation": "nearest",
        "upsampling": 4,
        **COMMON,
    },
    "unet": {
        "decoder_channels": (256, 128, 64, 32, 16),
        "decoder_use_norm": "batchnorm",
        "decoder_interpolation": "nearest",
        "decoder_attention_type": None,
        **COMMON,
    },
}
# Our names of SMP's arguments; of all other arguments only the default is supported.
OUR_NAMES = {
    "in_channels": "in_channels",
    "encoder_output_stride": "output_stride",
    "decoder_channels": "channels",
    "decoder_atrous_rates": "atrous_rates",
    "decoder_aspp_separable": "aspp_separable",
    "decoder_aspp_dropout": "dropout",
    "decoder_pyramid_channels": "pyramid_channels",
    "decoder_segmentation_channels": "channels",
    "decoder_merge_policy": "merge",
    "decoder_dropout": "dropout",
    "decoder_use_norm": "norm",
}
# Options of ours that SMP always uses and that are not our default.
OUR_OPTIONS: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {"align_corners": True, "aspp_refine": True, "fuse_convs": 1},
    "fpn": {"align_corners": True},
    "unet": {},
}
NORMS = {True: "batch", "batchnorm": "batch", False: "none", "identity": "none"}


def find_architecture(architecture: str) -> str:
    """Return our name of SMP's architecture, in upper or lower case.

    Raises:
        UsageError: An unknown architecture.
    """
    if architecture.lower() not in SMP_NAMES:
        raise unknown("architecture", architecture, SMP_NAMES.values())
    return architecture.lower()


def translate_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Translate SMP's arguments to arguments of `create_model`.

    Args:
        name: `deeplabv3plus`, `fpn` or `unet`.
        options: SMP's arguments by SMP's names; absent ones have SMP's defaults.

    Raises:
        UsageError: An argument that SMP's model or ours does not have.
    """
    options = dict(options)
    if "decoder_use_batchnorm" in options:  # its name until SMP 0.4
        options["decoder_use_norm"] = options.pop("decoder_use_batchnorm")
    for key, value in options.items():
        if key not in DEFAULTS[name]:
            raise unknown(f"argument of SMP's {SMP_NAMES[name]}", key, ["encoder_weights", *DEFAULTS[name]])
        if key not in OUR_NAMES and value != DEFAULTS[name][key]:
            remedy = "; omit it, and remove the keys classification_head.*" if key == "aux_params" else ""
            raise UsageError(f"`{key}={value!r}` is not supported, only {DEFAULTS[name][key]!r}{remedy}")
    chosen = {**DEFAULTS[name], **options}
    if name == "deeplabv3plus":
        if chosen["encoder_output_stride"] not in (8, 16):
            raise UsageError(f"encoder_output_stride must be 8 or 16, as in SMP, got {chosen['encoder_output_stride']}")
        if len(chosen["decoder_atrous_rates"]) != 3:
            raise UsageError(
                f"decoder_atrous_rates must be three rates, as in SMP, got {chosen['decoder_atrous_rates']}"
            )
    elif name == "fpn":
        # SMP always normalises in 32 groups; we use fewer if each group would have one channel.
        channels = chosen["decoder_segmentation_channels"]
        if channels % 32 or channels == 32:
            raise UsageError(f"decoder_segmentation_channels must be a multiple of 32, at least 64, got {channels}")
    elif name == "unet":
        norm = chosen["decoder_use_norm"]
        if not isinstance(norm, bool | str) or norm not in NORMS:
            raise UsageError(f"decoder_use_norm must be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
        chosen["decoder_use_norm"] = NORMS[norm]
    return OUR_OPTIONS[name] | {OUR_NAMES[key]: as_plain(chosen[key]) for key in chosen if key in OUR_NAMES}


def as_plain(value: Any) -> Any:
    """Return a tuple as a list, as JSON stores it."""
    return list(value) if isinstance(value, tuple) else value
