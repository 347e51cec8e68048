"""The keys of a Segmenter's tensors in the state dict of the SMP model with the same architecture.

Source: the key lists of the models of SMP 0.6.0; older releases have the same keys.
"""

import re
from collections.abc import Iterable

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


def map_keys(keys: Iterable[str], architecture: str, encoder_name: str) -> dict[str, str]:
    """Return SMP's key for each key of the Segmenter.

    Args:
        keys: The keys of the Segmenter's state dict.
        architecture: `deeplabv3plus`, `fpn` or `unet`.
        encoder_name: SMP's name of the encoder.
    """
    keys = list(keys)
    inner = {key: key.removeprefix("backbone.net.") for key in keys if key.startswith("backbone.net.")}
    mapped = _map_encoder(inner, encoder_name)
    for key in keys:
        if key.startswith("decoder."):
            mapped[key] = "decoder." + _replace_start(key.removeprefix("decoder."), DECODERS[architecture])
        elif key.startswith("head."):
            mapped[key] = f"{HEAD}.{key.removeprefix('head.')}"
    return mapped


def is_dead(key: str, encoder_name: str) -> bool:
    """Return whether the SMP model stores this tensor but never uses it."""
    return any(encoder_name.startswith(start) and key.startswith(dead) for start, dead in DEAD.items())


def _map_encoder(inner: dict[str, str], encoder_name: str) -> dict[str, str]:
    """Map the keys of the backbone: {our whole key: timm's key} -> {our whole key: SMP's key}."""
    if encoder_name.startswith("tu-"):
        return {key: f"encoder.model.{name}" for key, name in inner.items()}
    if not encoder_name.startswith("efficientnet-"):
        return {key: f"encoder.{name}" for key, name in inner.items()}
    blocks = {(int(s), int(b)) for s, b in re.findall(r"\bblocks\.(\d+)\.(\d+)\.", "\n".join(inner.values()))}
    number = {block: i for i, block in enumerate(sorted(blocks))}
    mapped = {}
    for key, name in inner.items():
        if name.startswith("blocks."):
            _, stage, block, layer = name.split(".", 3)
            layer = _replace_start(layer, OTHER_STAGES if int(stage) else FIRST_STAGE)
            mapped[key] = f"encoder._blocks.{number[int(stage), int(block)]}.{layer}"
        else:
            mapped[key] = f"encoder.{_replace_start(name, STEM)}"
    return mapped


def _replace_start(key: str, rules: Rules) -> str:
    for pattern, start in rules:
        match = re.match(pattern, key)
        if match:
            return match.expand(start) + key[match.end() :]
    return key
