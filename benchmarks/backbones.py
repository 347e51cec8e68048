"""Try every listed backbone with every decoder: one forward pass at an even and one at an odd image size.

Prints a Markdown table of the output strides that work.

    python benchmarks/backbones.py
    python benchmarks/backbones.py --only resnet18 swin_tiny_patch4_window7_224
"""

import argparse
import itertools
import sys

import torch

from segkit.models import DECODERS, create_model

SIZES = ((96, 128), (97, 131))
FAMILIES = {
    "ResNet": ["resnet18", "resnet50", "resnet50d", "wide_resnet50_2", "resnetv2_50"],
    "ResNeXt": ["resnext50_32x4d", "resnext101_32x4d"],
    "SE-ResNet": ["seresnext50_32x4d", "seresnext101_32x4d", "legacy_seresnet18"],
    "Res2Net, ResNeSt, SKNet": ["res2net50_26w_4s", "resnest14d", "skresnet18"],
    "RegNet": ["regnetx_002", "regnety_002", "regnetz_b16"],
    "EfficientNet": ["efficientnet_b0", "tf_efficientnet_b3", "tf_efficientnet_b4", "tf_efficientnet_b5"],
    "EfficientNet-Lite, V2": ["tf_efficientnet_lite0", "tf_efficientnetv2_b0", "mixnet_s"],
    "MobileNet": ["mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small", "lcnet_050"],
    "GhostNet, ReXNet": ["ghostnet_100", "rexnet_100"],
    "ConvNeXt": ["convnext_tiny", "convnextv2_atto", "inception_next_tiny"],
    "NFNet": ["nfnet_l0", "dm_nfnet_f0"],
    "DenseNet, VGG, DLA": ["densenet121", "vgg11_bn", "dla34"],
    "HRNet": ["hrnet_w18_small"],
    "CSP, Darknet": ["cspresnet50", "cspdarknet53", "darknet53"],
    "VoVNet, HGNet": ["ese_vovnet19b_dw", "hgnetv2_b0"],
    "RepVGG, RepViT, FastViT": ["repvgg_a0", "repvit_m0_9", "fastvit_t8"],
    "Xception, DPN": ["xception41", "dpn48b"],
    "EfficientViT, EdgeNeXt": ["efficientvit_b0", "edgenext_xx_small"],
    "PVT, Twins, MViT": ["pvt_v2_b0", "twins_svt_small", "mvitv2_tiny"],
    "Swin": ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"],
    "MaxViT": ["maxvit_tiny_tf_224"],
    "DaViT, FocalNet, TinyViT": ["davit_tiny", "focalnet_tiny_srf", "tiny_vit_5m_224"],
    "MetaFormer": ["poolformer_s12", "caformer_s18", "mambaout_femto"],
    "MobileViT": ["mobilevit_xxs", "mobilevitv2_050"],
    "one input size only": ["coatnet_0_rw_224", "gcvit_xxtiny", "hiera_tiny_224", "efficientformerv2_s0"],
}


def works(decoder: str, backbone: str, *, fixed_size: bool) -> str:
    """Return the first output stride at which the logits have the size of the image, or why none works."""
    for stride in (16, 32) if decoder == "deeplabv3plus" else (32,):
        # A backbone with a fixed input size is built for the size that both images are padded to.
        img_size = (128, 160) if fixed_size else None
        try:
            model = create_model(decoder, backbone=backbone, num_classes=3, output_stride=stride, img_size=img_size)
            with torch.inference_mode():
                shapes = [tuple(model.eval()(torch.randn(1, 3, *size)).shape) for size in SIZES]
        except ValueError as error:
            reason = str(error)
            continue
        return str(stride) if shapes == [(1, 3, *size) for size in SIZES] else f"wrong size {shapes}"
    return f"no: {reason}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="try only these backbones")
    only = parser.parse_args().only
    print("| family | backbone | " + " | ".join(DECODERS) + " |")
    print("|---|---|" + "---|" * len(DECODERS))
    failed = 0
    for family, name in itertools.chain.from_iterable(((f, n) for n in names) for f, names in FAMILIES.items()):
        if only and name not in only:
            continue
        cells = [works(decoder, name, fixed_size=family == "one input size only") for decoder in DECODERS]
        failed += sum(not cell.isdigit() for cell in cells)
        print(f"| {family} | `{name}` | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{failed} combinations failed", file=sys.stderr)


if __name__ == "__main__":
    main()
