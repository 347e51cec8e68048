"""Check that SMP's models return the same logits in segkit.

Prints the largest difference, divided by SMP's largest absolute logit, in eval mode. Each combination has random
weights and running statistics. In float64 a difference means that the networks differ; in float32 it includes
rounding. Needs `pip install segmentation-models-pytorch==0.6.0`.

    python benchmarks/smp_parity.py                                 # all combinations: some minutes
    python benchmarks/smp_parity.py --architectures FPN --encoders resnet18 efficientnet-b0
"""

import argparse
from collections.abc import Iterator

import segmentation_models_pytorch as smp
import torch
from torch import nn

from segkit.models import load_smp_checkpoint
from segkit.models.smp.encoders import ENCODERS

UNIVERSAL = ("tu-resnext50_32x4d", "tu-tf_efficientnet_b4", "tu-convnext_tiny")
OUTPUT_STRIDES = {"DeepLabV3Plus": (16, 8), "FPN": (32,), "Unet": (32,)}
SIZE = (96, 160)
CLASSES = 5


@torch.no_grad()
def randomise(model: nn.Module, in_channels: int = 3) -> nn.Module:
    """Fill weights and running statistics so that a wrong padding, dilation or eps shows in the logits.

    The running statistics come from one batch: with random ones, the feature maps of a deep network vanish, or a few
    channels dominate. Small variances are raised, because many of them in a row make rounding as large as the logits.
    """
    random = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1 and tensor.is_floating_point():
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=random)
        elif tensor.is_floating_point() and "running" not in name:
            centre = 1.0 if name.endswith("weight") else 0.0
            tensor.uniform_(centre - 0.3, centre + 0.3, generator=random)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(2, in_channels, *SIZE, generator=random))
    for norm in norms:
        norm.running_var.clamp_(min=0.1)
    return model.eval()


def combinations(architectures: list[str], encoders: list[str]) -> Iterator[tuple[str, str, int]]:
    for architecture in architectures:
        for encoder in encoders:
            for stride in OUTPUT_STRIDES[architecture]:
                if not (architecture == "DeepLabV3Plus" and "convnext" in encoder):
                    yield architecture, encoder, stride


@torch.inference_mode()
def differences(architecture: str, encoder: str, stride: int) -> tuple[float, float]:
    """Return the relative difference of the logits in float32 and in float64."""
    options = {"encoder_output_stride": stride} if architecture == "DeepLabV3Plus" else {}
    peer = randomise(getattr(smp, architecture)(encoder, encoder_weights=None, classes=CLASSES, **options))
    model = load_smp_checkpoint(peer.state_dict(), architecture, encoder, num_classes=CLASSES, **options)
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    found = []
    for dtype in (torch.float32, torch.float64):
        expected = peer.to(dtype)(images.to(dtype))
        assert expected.isfinite().all()
        assert expected.std((0, 2, 3)).min() > 0
        difference = model.to(dtype)(images.to(dtype)) - expected
        found.append((difference.abs().max() / expected.abs().max()).item())
    return found[0], found[1]


def describe(float32: float, float64: float) -> str:
    return f"float32 {float32:.1e}  float64 {float64:.1e}"


def main() -> None:
    encoders = [*ENCODERS, *UNIVERSAL]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=OUTPUT_STRIDES, default=list(OUTPUT_STRIDES))
    parser.add_argument("--encoders", nargs="+", default=encoders, help="SMP's names; tu-... is a timm backbone")
    arguments = parser.parse_args()
    worst: dict[str, list[tuple[float, float]]] = {}
    for architecture, encoder, stride in combinations(arguments.architectures, arguments.encoders):
        found = differences(architecture, encoder, stride)
        worst.setdefault(architecture, []).append(found)
        print(f"{architecture:14} {encoder:22} output stride {stride:2}  {describe(*found)}", flush=True)
    for architecture, found in worst.items():
        print(f"worst of {len(found):2} {architecture:34} {describe(*map(max, zip(*found, strict=True)))}")


if __name__ == "__main__":
    main()
