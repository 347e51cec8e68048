"""Backbone: a timm network as a feature pyramid, with random weights or weights from the hub or a file."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from timm.layers import Format
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from segkit.errors import MissingFileError, OfflineError, UsageError
from segkit.models.preprocessing import Preprocessing
from segkit.models.same_padding import pad_kernels
from segkit.models.smp.encoders import SMP_PREFIX, create_smp_features, find_variant
from segkit.models.weights_file import read_weights_file
from segkit.names import nearest

HUB_ANSWER_SECONDS = 4.0
PYRAMIDS = (  # examples for messages
    "resnet50",
    "resnext50_32x4d",
    "tf_efficientnet_b4",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b2",
)


class Backbone(nn.Module):
    """A timm network that returns its feature maps: (N, in_channels, H, W) -> list of Tensor, finest first.

    The first entry is the image itself (stride 1); the others are the stages of the network. Height and width of
    the image must be multiples of `size_multiple`; a map of stride s then has exactly (H / s, W / s) pixels.

    Args:
        name: A name of timm, with or without a tag of weights, such as `resnext50_32x4d` or
            `tf_efficientnet_b4.ns_jft_in1k`; or `smp:` and the name of an encoder of segmentation_models_pytorch,
            to load its weights (see `segkit.models.smp.encoders`).
        pretrained: False for random weights, True for the weights on timm's hub, or the path of a .safetensors or
            .pth file with timm's keys.
        in_channels: Channels of the image; timm adapts a pretrained stem to other than three.
        output_stride: Stride of the deepest map: 32, or 16 or 8 if the network can be dilated. A network whose
            deepest stride is larger than 32 keeps it.
        img_size: (H, W) of the images, for networks that are built for a single size.

    Attributes:
        channels: Channels of each level.
        strides: Stride of each level.
        size_multiple: The images must be padded to multiples of this (H, W).
        preprocessing: Mean, standard deviation and range of the images that the weights were trained on.

    Raises:
        UsageError: An unknown name, an option that the network does not support, or weights that do not fit.
        OfflineError: `pretrained=True`, and the weights are neither in the cache nor does the hub answer.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str | os.PathLike = False,
        in_channels: int = 3,
        output_stride: int = 32,
        img_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net = _create_features(name, in_channels, output_stride, img_size, from_hub=pretrained is True)
        if not isinstance(pretrained, bool):
            _load_file(self.net, Path(pretrained), name)
        pad_kernels(self.net)
        info = self.net.feature_info
        self.channels: tuple[int, ...] = (in_channels, *info.channels())
        self.strides: tuple[int, ...] = (1, *info.reduction())
        self.channels_come_last = getattr(self.net, "output_fmt", None) == Format.NHWC
        config = self.net.pretrained_cfg
        # timm has one value for each of red, green and blue; other channels repeat them in this order.
        mean, std = (tuple(v[i % len(v)] for i in range(in_channels)) for v in (config["mean"], config["std"]))
        self.preprocessing = Preprocessing(mean, std)
        self.size_multiple = _find_size_multiple(self, name, img_size, config["input_size"][1:])

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.net(images)
        if self.channels_come_last:
            maps = [x.permute(0, 3, 1, 2).contiguous() for x in maps]
        return [images, *maps]


def _find_size_multiple(
    backbone: Backbone, name: str, img_size: Sequence[int] | None, trained_size: Sequence[int]
) -> tuple[int, int]:
    """Try the network on multiples of its deepest stride, of twice that stride, and of the size it was trained on."""
    *_, deepest = backbone.strides
    if list(backbone.strides[1:]) != sorted(set(backbone.strides[1:])) and len(set(backbone.strides[1:])) < 3:
        raise UsageError(
            f"backbone {name!r} has only maps of stride {deepest}, not a pyramid; choose a network with stages, "
            f"such as {', '.join(PYRAMIDS)}"
        )
    if img_size is not None and _fits(backbone, tuple(img_size)):
        return tuple(img_size)
    for height, width in ((deepest, deepest), (2 * deepest, 2 * deepest), tuple(trained_size)):
        if _fits(backbone, (2 * height, 3 * width)):
            return height, width
    raise UsageError(
        f"backbone {name!r} takes images of a single size; pass `img_size` (H, W), for which it must be built, or "
        f"choose another backbone, such as {', '.join(PYRAMIDS)}"
    )


@torch.inference_mode()
def _fits(backbone: Backbone, size: tuple[int, int]) -> bool:
    """Return whether the maps of an image of `size` have the channels and sizes that the strides promise."""
    mode = backbone.training
    try:
        maps = backbone.eval()(torch.zeros(1, backbone.channels[0], *size))
    except (RuntimeError, AssertionError, ValueError):
        return False
    finally:
        backbone.train(mode)
    expected = [(1, c, size[0] // s, size[1] // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    return [tuple(x.shape) for x in maps] == expected


def _create_features(
    name: str, in_channels: int, output_stride: int, img_size: Sequence[int] | None, *, from_hub: bool
) -> nn.Module:
    """Build the network that returns the maps of its stages, with random or pretrained weights."""
    is_smp = name.startswith(SMP_PREFIX)
    if is_smp:
        find_variant(name.removeprefix(SMP_PREFIX))
    elif not timm.is_model(name):
        near = nearest(name, [*timm.list_models(), *timm.list_pretrained()])
        hint = f"did you mean {near!r}?" if near else "timm.list_models() lists all."
        raise UsageError(f"unknown backbone {name!r} (timm {timm.__version__}); {hint}")
    source = _find_on_hub(name) if from_hub else {}
    if is_smp:
        return create_smp_features(name, in_channels, output_stride)
    # Many networks do not take these options, so they are passed only if they change something.
    options: dict[str, object] = {} if output_stride == 32 else {"output_stride": output_stride}
    if img_size is not None:
        options["img_size"] = tuple(img_size)
    elif name.startswith("swin"):
        options["strict_img_size"] = False  # timm would refuse all other sizes, although the windows fit any
    try:
        return timm.create_model(
            name, features_only=True, pretrained=from_hub, in_chans=in_channels, **options, **source
        )
    except (TypeError, RuntimeError, AssertionError, NotImplementedError, AttributeError) as error:
        reason = f" ({error})" if str(error) else ""
        if "output_stride" in options:
            raise UsageError(
                f"backbone {name!r} cannot run at `output_stride={output_stride}`{reason}; use `output_stride=32`"
            ) from error
        raise UsageError(
            f"backbone {name!r} has no feature pyramid{reason}; choose a network with stages, such as "
            f"{', '.join(PYRAMIDS)}"
        ) from error


def _find_on_hub(name: str) -> dict[str, dict[str, str]]:
    """Return the options that point timm to the weights in the cache, or none if the hub can be reached.

    Raises:
        OfflineError: The weights are not in the cache, and the hub does not answer. It is raised within seconds; timm
            itself would retry for 45 seconds.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UsageError(f"timm has no pretrained weights for {name!r}; use `pretrained=False` or the path of a file")
    filename = config.hf_hub_filename or "model.safetensors"
    cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
    if isinstance(cached, str):
        return {"pretrained_cfg_overlay": {"file": cached}}
    if not _hub_answers(config.hf_hub_id, filename):
        raise OfflineError(
            f"the weights of {name!r} are not in the local cache, and {huggingface_hub.constants.ENDPOINT} does not "
            "answer; set `pretrained` to the path of a downloaded safetensors file, or to false for random weights"
        )
    return {}


def _hub_answers(repo: str, filename: str, seconds: float = HUB_ANSWER_SECONDS) -> bool:
    """Return whether the hub answers in time; asks in a thread, because a name lookup has no time limit."""
    answered = threading.Event()

    def ask() -> None:
        url = huggingface_hub.hf_hub_url(repo, filename)
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=seconds)
        except HfHubHTTPError:
            pass  # The hub answered; timm will report the error.
        except Exception:  # A missing network raises many kinds of errors.
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _load_file(net: nn.Module, path: Path, name: str) -> None:
    """Load every tensor of `net` from a file with timm's keys; tensors of the classifier are ignored."""
    if not path.is_file():
        raise MissingFileError(
            f"there is no weights file {path}; `pretrained` takes true, false or the path of a safetensors file"
        )
    content = read_weights_file(path)
    for entry in ("state_dict", "model"):  # where timm and others put the weights in a checkpoint
        content = content[entry] if isinstance(content.get(entry), Mapping) else content
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    stored = clean_state_dict(tensors)
    by_flat_key = {_flat(key): value for key, value in stored.items()}
    # Old files have no counters of batches, and torch works without them.
    weights = {
        key: by_flat_key.get(_flat(key), own if key.endswith("num_batches_tracked") else None)
        for key, own in net.state_dict().items()
    }
    missing = [key for key, value in weights.items() if value is None]
    if missing:
        raise UsageError(
            f"{path} does not hold the weights of {name!r}: {len(missing)} of {len(weights)} tensors are missing, "
            f"such as {missing[0]!r}"
        )
    for key, tensor in net.state_dict().items():
        if weights[key].ndim == 4 and weights[key].shape[1] == 3 != tensor.shape[1]:
            weights[key] = adapt_input_conv(tensor.shape[1], weights[key])  # the stem, for images that are not RGB
        if weights[key].shape != tensor.shape:
            raise UsageError(
                f"{path} does not hold the weights of {name!r}: {key!r} has shape {tuple(weights[key].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    check_finite(weights, path)
    net.load_state_dict(weights)


def check_finite(weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise UsageError if a weight is NaN or infinite; every pixel would get label 0.

    Args:
        weights: Tensors by name.
        where: The file or object that holds them, for the message.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UsageError(f"{where} is damaged: {name!r} holds values that are not finite (NaN or infinite)")


def _flat(key: str) -> str:
    """Return the key in one form: timm joins nested names with `_` in some networks and adds `model.` in others."""
    return key.removeprefix("model.").replace(".", "_")
