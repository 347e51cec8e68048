"""create_model: build an architecture by name on a backbone by name."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import timm
from torch import nn

from segkit.errors import UsageError
from segkit.models.backbone import Backbone
from segkit.models.deeplabv3plus import DeepLabV3Plus
from segkit.models.fpn import FPN
from segkit.models.segmenter import AuxiliaryHead, ImageHead, SegmentationHead, Segmenter
from segkit.models.smp.encoders import SMP_PREFIX
from segkit.models.unet import UNet
from segkit.names import check_known

DECODERS: dict[str, Callable[..., nn.Module]] = {"deeplabv3plus": DeepLabV3Plus, "fpn": FPN, "unet": UNet}
DEFAULT_OUTPUT_STRIDE = {"deeplabv3plus": 16, "fpn": 32, "unet": 32}


def create_model(
    name: str,
    *,
    backbone: str = "resnext50_32x4d",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    pretrained: bool | str | os.PathLike = False,
    in_channels: int = 3,
    output_stride: int | None = None,
    img_size: Sequence[int] | None = None,
    aux_head: bool = False,
    image_head: bool = False,
    align_corners: bool = False,
    **decoder_options: Any,
) -> Segmenter:
    """Build a segmentation model.

    Args:
        name: `deeplabv3plus`, `fpn` or `unet`.
        backbone: A name of timm, with or without a tag of weights, such as `tf_efficientnet_b4.ns_jft_in1k`; see
            `Backbone`.
        num_classes: Number of classes, background included; optional if `class_names` is passed. 1 for a model with
            one channel, whose sigmoid is the probability of a single class against the background: for the loss `bce`
            or `dice` with `mode="binary"`. In masks the background is label 0 and the class is label 1.
        class_names: Names of the classes in index order; they are stored with the model. For a model with one channel,
            the name of label 1.
        pretrained: Weights of the backbone: False for random ones, True for timm's hub, or the path of a file.
        in_channels: Channels of the images.
        output_stride: Stride of the deepest features, 8, 16 or 32; by default 16 for `deeplabv3plus`
            and 32 for the others.
        img_size: (H, W) of the images, for backbones that are built for a single size.
        aux_head: Add a segmentation head on the features before the deepest; see `Segmenter.forward`.
        image_head: Add a classifier of the whole image.
        align_corners: How the logits, and maps in the decoder, are upsampled; see
            `segkit.models.layers.resize`.
        **decoder_options: Keyword arguments of the decoder, such as `channels` or `norm`.

    Returns:
        A Segmenter: (N, in_channels, H, W) normalised images -> (N, num_classes, H, W) logits.

    Raises:
        UsageError: An unknown name, backbone or option, or weights that do not fit.
        OfflineError: `pretrained=True`, and the weights are neither in the cache nor does the hub answer.
    """
    check_known("model", name, DECODERS)
    parameters = inspect.signature(DECODERS[name]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if align_corners and "align_corners" in known:
        decoder_options["align_corners"] = True
    for option in decoder_options:
        if option not in known and option in [parameter.name for parameter in parameters][2:]:
            raise UsageError(f"`{option}` of {name} is not an option: options are keyword-only arguments, after `*`")
        check_known(f"option of {name}", option, known)
    decoder_options = {option: _as_list(value) for option, value in decoder_options.items()}
    names = _resolve_class_names(num_classes, class_names)
    if not isinstance(in_channels, Integral) or in_channels < 1:
        raise UsageError(f"`in_channels` must be a whole number of at least 1, got {in_channels!r}")
    output_stride = output_stride or DEFAULT_OUTPUT_STRIDE.get(name, 32)
    if output_stride not in (8, 16, 32):
        raise UsageError(f"`output_stride` must be 8, 16 or 32, got {output_stride}")
    pyramid = Backbone(
        backbone, pretrained=pretrained, in_channels=in_channels, output_stride=output_stride, img_size=img_size
    )
    try:
        decoder = DECODERS[name](pyramid.channels, pyramid.strides, **decoder_options)
    except (TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:  # torch's for a wrong value
        raise UsageError(f"{name} cannot be built with {decoder_options}: {error}") from error
    head = SegmentationHead(decoder.out_channels, len(names), kernel_size=getattr(decoder, "head_kernel_size", 1))
    config = {
        "name": name,
        "backbone": backbone,
        "in_channels": in_channels,
        "output_stride": output_stride,
        "img_size": img_size and list(img_size),
        "aux_head": aux_head,
        "image_head": image_head,
        "align_corners": align_corners,
        **decoder_options,
    }
    return Segmenter(
        pyramid,
        decoder,
        head,
        class_names=names,
        config=config,
        align_corners=align_corners,
        aux_head=AuxiliaryHead(pyramid.channels[-2], len(names)) if aux_head else None,
        image_head=ImageHead(pyramid.channels[-1], len(names)) if image_head else None,
    )


def import_modules(names: Sequence[str]) -> None:
    """Import modules that add decoders, losses or backbones; they are installed or lie in the working folder.

    Args:
        names: Names of the modules, such as `mymodule` or `package.module`.

    Raises:
        UsageError: There is no such module.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file there replaces an installed package
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(f"`imports` takes names of modules, such as mymodule, got {name!r}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # the module itself lacks another one
                raise
            raise UsageError(f"`imports`: there is no module {name}, neither installed nor in {os.getcwd()}") from error


def modules_of(name: str, backbone: str) -> list[str]:
    """Return the modules that added the decoder and the backbone of a model, other than segkit and timm."""
    makers: list[Any] = [DECODERS.get(name)]
    if timm.is_model(backbone):
        makers.append(timm.models.model_entrypoint(backbone.partition(".")[0]))
    found = [getattr(maker, "__module__", "segkit") for maker in makers]
    return [module for module in dict.fromkeys(found) if module.partition(".")[0] not in ("segkit", "timm")]


def check_modules(file: str | os.PathLike, header: Mapping[str, Any]) -> None:
    """Raise UsageError if a model file needs modules that are not imported; they are named, and never imported here.

    Args:
        file: The model file, for the message.
        header: Its header; `modules` is what `modules_of` returned when it was written.
    """
    name, backbone = (str(header["model"].get(part)) for part in ("name", "backbone"))
    is_known = name in DECODERS and (backbone.startswith(SMP_PREFIX) or timm.is_model(backbone))
    modules = header.get("modules")
    if is_known or not isinstance(modules, list) or not modules:
        return
    listed = " ".join(map(str, modules))
    script = "; code of a script has to move into a module first" if "__main__" in modules else ""
    raise UsageError(
        f"{file} needs code that is not part of segkit, from {listed}. A model file is data, so segkit does not import "
        f"what it names: if you trust that code, import it yourself, or name it in `imports`{script}"
    )


def _as_list(value: Any) -> Any:
    """Turn tuples into lists, as a model file returns them, so that architectures can be compared."""
    return [_as_list(item) for item in value] if isinstance(value, tuple | list) else value


def _resolve_class_names(num_classes: int | None, class_names: Sequence[str] | None) -> tuple[str, ...]:
    if class_names is None:
        if not isinstance(num_classes, Integral) or num_classes < 1:
            raise UsageError(f"`num_classes` must be a whole number of at least 1, got {num_classes!r}")
        return ("foreground",) if num_classes == 1 else tuple(f"class_{i}" for i in range(num_classes))
    if num_classes not in (None, len(class_names)):
        raise UsageError(f"`num_classes` is {num_classes}, but `class_names` has {len(class_names)} names")
    return check_class_names(class_names)


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes of a model; raise UsageError for anything else."""
    if not class_names:
        raise UsageError("`class_names` is empty")
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise UsageError(f"`class_names` must be a list of names, got {class_names!r}")
    if len(set(class_names)) < len(class_names):
        raise UsageError(f"`class_names` has the same name twice: {', '.join(class_names)}")
    return tuple(class_names)
