"""Rename the tensors of an SMP model to the keys of the Segmenter with the same architecture.

Source: the key lists of the models of SMP 0.6.0; older releases have the same keys.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from segkit.errors import UsageError
from segkit.models.smp.options import SMP_NAMES

HEAD = "segmentation_head.0"

Rules = tuple[tuple[str, str], ...]  # a pattern for the start of our key, and the start of SMP's key

DECODERS: dict[str, Rules] = {
    "deeplabv3plus": (
        (r"aspp\.branches\.(\d)\.depthwise", r"aspp.0.convs.\1.0.0"),
        (r"aspp\.branches\.(\d)\.pointwise", r"aspp.0.convs.\1.0.1"),
        (r"aspp\.branches\.(\d)\.conv", r"aspp.0.convs.\1.0"),
        (r"aspp\.branches\.(\d)\.norm", r"aspp.0.convs.\1.1"),
        (r"aspp\.pooled\.conv", "aspp.0.convs.4.1"),
        (r"aspp\.pooled\.norm", "aspp.0.convs.4.2"),
        (r"aspp\.project\.conv", "aspp.0.project.0"),
        (r"aspp\.project\.norm", "aspp.0.project.1"),
        (r"refine\.depthwise", "aspp.1.0"),
        (r"refine\.pointwise", "aspp.1.1"),
        (r"refine\.norm", "aspp.2"),
        (r"skip\.conv", "block1.0"),
        (r"skip\.norm", "block1.1"),
        (r"fuse\.0\.depthwise", "block2.0.0"),
        (r"fuse\.0\.pointwise", "block2.0.1"),
        (r"fuse\.0\.norm", "block2.1"),
    ),
    "fpn": (
        (r"lateral\.3", "p5"),
        *((rf"lateral\.{i}", f"p{i + 2}.skip_conv") for i in range(3)),
        *((rf"branch\.{i}\.(\d)\.conv", rf"seg_blocks.{3 - i}.block.\1.block.0") for i in range(4)),
        *((rf"branch\.{i}\.(\d)\.norm", rf"seg_blocks.{3 - i}.block.\1.block.1") for i in range(4)),
    ),
    "unet": tuple(
        (rf"steps\.(\d)\.fuse\.{i}\.{ours}", rf"blocks.\1.conv{i + 1}.{theirs}")
        for i in range(2)
        for ours, theirs in (("conv", 0), ("norm", 1))
    ),
}

# Keys of lukemelas/EfficientNet-PyTorch: blocks are numbered across stages, and the first stage has no expansion.
STEM: Rules = ((r"conv_stem", "_conv_stem"), (r"bn1", "_bn0"))
FIRST_STAGE: Rules = (
    (r"conv_dw", "_depthwise_conv"),
    (r"bn1", "_bn1"),
    (r"conv_pw", "_project_conv"),
    (r"bn2", "_bn2"),
    (r"se\.conv_", "_se_"),
)
OTHER_STAGES: Rules = (
    (r"conv_pw\.", "_expand_conv."),
    (r"bn1", "_bn0"),
    (r"conv_dw", "_depthwise_conv"),
    (r"bn2", "_bn1"),
    (r"conv_pwl", "_project_conv"),
    (r"bn3", "_bn2"),
    (r"se\.conv_", "_se_"),
)

# The last convolution of the classifier: SMP stores it but never runs it.
DEAD = {"efficientnet-": ("encoder._conv_head.", "encoder._bn1."), "timm-": ("encoder.conv_head.", "encoder.bn2.")}


def rename_weights(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], architecture: str, encoder_name: str
) -> dict[str, Tensor]:
    """Return the tensors of an SMP model by our keys; all must fit, and none may be missing or unused.

    Args:
        weights: The state dict of the SMP model.
        own: The state dict of the Segmenter; only counters of batches that `weights` lacks are taken from it.
        architecture: `deeplabv3plus`, `fpn` or `unet`.
        encoder_name: SMP's name of the encoder.

    Raises:
        UsageError: The weights belong to another model.
    """
    key_of = _map_keys(own, architecture, encoder_name)
    wrong = [
        f"{smp!r} expected {tuple(own[key].shape)}, got {tuple(weights[smp].shape)}"
        for key, smp in key_of.items()
        if smp in weights and weights[smp].shape != own[key].shape
    ]
    counters = {smp for smp in (*key_of.values(), *weights) if smp.endswith("num_batches_tracked")}
    missing = [f"{smp!r} is missing" for smp in key_of.values() if smp not in weights and smp not in counters]
    expected = {*key_of.values(), *counters}
    dead = tuple(key for start, keys in DEAD.items() if encoder_name.startswith(start) for key in keys)
    foreign = [f"{smp!r} is unexpected" for smp in weights if smp not in expected and not smp.startswith(dead)]
    if wrong or missing or foreign:
        some = [*wrong[:2], *missing[:2], *foreign[:2]]
        raise UsageError(
            f"the weights do not belong to SMP's {SMP_NAMES[architecture]} with encoder {encoder_name!r} and these "
            f"options: {len(wrong)} with another shape, {len(missing)} missing, {len(foreign)} unexpected; "
            f"{'; '.join(some)}"
        )
    return {key: weights.get(smp, own[key]) for key, smp in key_of.items()}


def _map_keys(keys: Collection[str], architecture: str, encoder_name: str) -> dict[str, str]:
    """Return SMP's key for each key of the Segmenter."""
    blocks = {tuple(map(int, found)) for found in re.findall(r"backbone\.net\.blocks\.(\d+)\.(\d+)\.", "\n".join(keys))}
    number = {block: i for i, block in enumerate(sorted(blocks))}
    mapped = {}
    for key in keys:
        part, _, name = key.partition(".")
        if part == "decoder":
            mapped[key] = "decoder." + _replace_start(name, DECODERS[architecture])
        elif part == "head":
            mapped[key] = f"{HEAD}.{name}"
        elif part == "backbone":
            name = name.removeprefix("net.")
            if encoder_name.startswith("tu-"):
                name = f"model.{name}"
            elif encoder_name.startswith("efficientnet-") and name.startswith("blocks."):
                _, stage, block, layer = name.split(".", 3)
                layer = _replace_start(layer, OTHER_STAGES if int(stage) else FIRST_STAGE)
                name = f"_blocks.{number[int(stage), int(block)]}.{layer}"
            elif encoder_name.startswith("efficientnet-"):
                name = _replace_start(name, STEM)
            mapped[key] = f"encoder.{name}"
    return mapped


def _replace_start(key: str, rules: Rules) -> str:
    for pattern, start in rules:
        match = re.match(pattern, key)
        if match:
            return match.expand(start) + key[match.end() :]
    return key
