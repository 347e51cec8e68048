"""TTA: run models on several views of each image and merge the predictions."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.names import check_known
from segkit.training_scale import FULL_SIZE, Resizing, training_scale_of
from segkit.tta.merge import MERGES, Accumulator, class_logits
from segkit.tta.views import TURNS, View, turns_of

LARGEST_ON_CPU, LARGEST_ON_GPU = 400_000, 4 * 2**20  # default limits on the pixels of a batch


class Member(NamedTuple):
    """A model of an ensemble.

    Attributes:
        model: Module that maps its input (N, 3, H, W) to logits (N, C, H, W), or to a dict with the logits as its entry
            `out`, as torchvision's models do. With one channel, the probability of the class is its sigmoid.
        prepare: Function from RGB images (N, 3, H, W) float32 in 0..255 to the input of the model.
        weight: Weight of the model in the average.
        resizing: How the images are resized to the scale of the model's training; see `TrainingScale.of`.
    """

    model: nn.Module
    prepare: Callable[[Tensor], Tensor]
    weight: float = 1.0
    resizing: Resizing = FULL_SIZE


class Uncertainty(NamedTuple):
    """Mean prediction of the views, and how much the views differ.

    Attributes:
        probs: (N, C, H, W) mean probabilities of the views.
        std: (N, H, W) standard deviation over the views of the probability of the most likely class.
        entropy: (N, H, W) entropy of the mean probabilities, in nats.
    """

    probs: Tensor
    std: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class TTA:
    """Apply test-time augmentation: `TTA(scales=(0.75, 1.0, 1.25), flips="v")(model, images)`.

    The views are all combinations of scales, brightness factors and turns. Each scale is resized from the
    original image, and its prediction is resized back to the exact size of the image. The turns of one scale
    run as one batch. A model that was trained on shrunk photographs gets images that are shrunk by the same rule, see
    `TrainingScale`. `print(tta)` lists the views.

    Args:
        scales: Factors for height and width, on top of the model's training scale.
        flips: `none`, `h`, `v`, `hv` (h, v and both together), `d4` (all flips and quarter turns), or names
            from `segkit.tta.TURNS`. The unchanged image is always a view, and no view occurs twice.
        brightness: Factors for the RGB values; the results are clipped at 255.
        merge: How the views are merged. `mean`: mean of the probabilities. `gmean`: their geometric mean,
            which is the softmax of the mean logits. `logits-sum`: the same, but the logits of several models are
            added up, so that the result is more certain. `max`, `min`: scaled to sum to 1. `vote`: share of the
            views in which the class is the most likely one. `sharpened`: the probabilities of each view are
            squared and scaled to sum to 1; then their mean. `logits`: mean of the logits.
        align_corners: Option of the bilinear resizing, as in `torch.nn.functional.interpolate`.
        multiple: Make the sides of scaled images multiples of this, for models that need it.
        fit: How to reach a multiple: `resize` rounds the size, `pad` repeats the right and lower border.
        max_pixels: Largest batch, in pixels; more turns are split into several batches. By default 4 million on a
            GPU, and 400,000 on a CPU, because larger batches do not fit the cache of a CPU and take longer.
        resize: How images and predictions are resized to a scale and back: `bilinear` or `nearest`. `nearest` shifts
            the prediction by up to a pixel and serves to repeat the results of ttach, whose default it is: each image
            is turned first, then resized.
        brightness_of: What the brightness factors multiply: the RGB values of the `image`, or the normalised `input` of
            the model, as in ttach, which changes the contrast.

    Raises:
        UsageError: An unknown merge, fit, flip or turn, or a number that is out of range.
    """

    scales: Sequence[float] = (1.0,)
    flips: str | Sequence[str] = "none"
    brightness: Sequence[float] = (1.0,)
    merge: str = "mean"
    align_corners: bool = False
    multiple: int = 1
    fit: str = "resize"
    max_pixels: int | None = None
    resize: str = "bilinear"
    brightness_of: str = "image"

    def __post_init__(self) -> None:
        for name in ("scales", "brightness"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, Real | str) else tuple(given)
            if not values or not all(isinstance(value, Real) and 0 < value < math.inf for value in values):
                raise UsageError(f"`{name}` must be positive numbers, got {given!r}")
            object.__setattr__(self, name, tuple(dict.fromkeys(map(float, values))))
        choices = {"merge": tuple(MERGES), "fit": ("resize", "pad"), "resize": ("bilinear", "nearest")}
        for name, known in {**choices, "brightness_of": ("image", "input")}.items():
            check_known(name, getattr(self, name), known)
        for name in ("multiple", "max_pixels"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and value >= 1):
                raise UsageError(f"`{name}` must be a whole number of at least 1, got {value!r}")
        turns_of(self.flips)

    @classmethod
    def preset(cls, name: str) -> "TTA":
        """Return one of the test-time augmentations in `segkit.tta.engine.PRESETS`.

        Raises:
            UsageError: There is no preset of that name.
        """
        check_known("preset", name, PRESETS)
        return PRESETS[name]

    @property
    def turns(self) -> tuple[str, ...]:
        """Names of the turns, with `identity` first."""
        return turns_of(self.flips)

    @property
    def views(self) -> tuple[View, ...]:
        """All views of an image; every model predicts each of them once."""
        # Turns with the same output shape are neighbours, because they run as one batch.
        turns = sorted(self.turns, key=lambda name: TURNS[name].transposed)
        return tuple(View(*view) for view in product(self.scales, self.brightness, turns))

    def largest_batch(self, device: torch.device) -> int:
        """Return the largest number of pixels that a model gets at once on a device."""
        return self.max_pixels or (LARGEST_ON_CPU if device.type == "cpu" else LARGEST_ON_GPU)

    def __str__(self) -> str:
        scales, brightness = ([f"{factor:g}" for factor in factors] for factors in (self.scales, self.brightness))
        parts = {"scales": scales, "brightness": brightness, "turns": self.turns}
        named = [f"{name} {', '.join(values)}" for name, values in parts.items() if len(values) > 1]
        count = len(self.views)
        rule = f"{self.merge}, resized by nearest" if self.resize == "nearest" else self.merge
        return f"{count} views: {' x '.join(named)}; {rule}" if count > 1 else f"1 view: scale {self.scales[0]:g}"

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Predict images with a single model.

        The model runs in evaluation mode; its mode is restored afterwards.

        Args:
            model: Module that maps images to logits, see `Member`.
            images: (N, 3, H, W) float, normalised as the model expects.

        Returns:
            (N, C, H, W) float32 probabilities, or logits if `merge="logits"`. Probabilities of a model with one channel
            are (N, 2, H, W): of the background and of its class.

        Raises:
            UsageError: `images` is not such a tensor, the model returns something else, or `brightness` is set but the
                model has no `preprocessing`, which defines white.
        """
        return self.ensemble(*self._as_single_member(model, images))

    @torch.no_grad()
    def ensemble(self, members: Sequence[Member], images: Tensor) -> Tensor:
        """Predict images with several models and merge all members and views.

        Args:
            members: The models, with their preprocessing and weights.
            images: (N, 3, H, W) RGB float32 in 0..255.

        Returns:
            (N, C, H, W) float32 probabilities, or logits if `merge="logits"`.
        """
        total = Accumulator(MERGES[self.merge], len(members))
        with _in_eval_mode(members):
            for scores, weight in self._scores(members, images, each=not total.merge.linear):
                total.add(scores, weight)
        return total.result()

    @torch.no_grad()
    def each(self, member: Member, images: Tensor) -> Iterator[Tensor]:
        """Yield the prediction of each view, in the order of `views`.

        Args:
            member: The model, with its preprocessing.
            images: (N, 3, H, W) RGB float32 in 0..255.

        Yields:
            (N, C, H, W) float32 at the size of the images: probabilities, or logits if the merge is `gmean`,
            `logits-sum` or `logits`.
        """
        with _in_eval_mode([member]):
            for scores, _ in self._scores([member], images, each=True):
                yield scores

    @torch.no_grad()
    def uncertainty(self, model: nn.Module, images: Tensor) -> Uncertainty:
        """Return the mean probabilities of the views, and how much the views differ.

        Args:
            model: Module that maps images to logits, see `Member`.
            images: (N, 3, H, W) float, normalised as the model expects.

        Raises:
            UsageError: As for `__call__`.
        """
        members, images = self._as_single_member(model, images)
        mean, squares, count = 0, 0, len(self.views)
        with _in_eval_mode(members):
            for scores, _ in self._scores(members, images, each=True):
                probs = scores if MERGES[self.merge].score is MERGES["mean"].score else class_logits(scores).softmax(1)
                mean, squares = mean + probs / count, squares + probs.square() / count
        likeliest = mean.argmax(1, keepdim=True)
        variance = (squares - mean.square()).gather(1, likeliest)[:, 0]
        return Uncertainty(mean, variance.clamp(min=0).sqrt(), torch.special.entr(mean).sum(1))

    def _as_single_member(self, model: nn.Module, images: Tensor) -> tuple[list[Member], Tensor]:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            got = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(
                f"`images` must be a tensor (N, 3, H, W) float, normalised as the model expects, got {got}"
            )
        resizing = training_scale_of(model).of(*images.shape[-2:])
        if self.brightness == (1.0,) or self.brightness_of == "input":
            # everything except the brightness of the image commutes with the normalisation
            return [Member(model, lambda x: x, resizing=resizing)], images
        if not hasattr(model, "preprocessing"):
            raise UsageError("`brightness` needs a model with `preprocessing`, to undo the normalisation of its images")
        member = Member(model, model.preprocessing.normalise, resizing=resizing)
        return [member], model.preprocessing.denormalise(images)

    def _scores(self, members: Sequence[Member], images: Tensor, *, each: bool) -> Iterator[tuple[Tensor, float]]:
        """Yield scores at the size of the images with their weight: of each view, or weighted sums of each scale."""
        size = tuple(images.shape[-2:])
        is_nearest = self.resize == "nearest"
        for scale, resizing in product(self.scales, dict.fromkeys(member.resizing for member in members)):
            alike = [member for member in members if member.resizing == resizing]
            options = {} if is_nearest else {"scale": scale, "multiple": self._unit}
            scaled = resizing(images, **options, align_corners=self.align_corners)
            whole, weights = None, 0.0
            for factor, member in product(self.brightness, alike):
                if self.brightness_of == "input":
                    inputs = member.prepare(scaled) * factor
                else:
                    inputs = member.prepare(scaled if factor == 1 else (scaled * factor).clamp(max=255))
                for scores in self._turned(member.model, inputs, scale if is_nearest else 1.0):
                    if each:
                        yield resizing.undo(scores, size, align_corners=self.align_corners), member.weight
                        continue
                    whole = scores * member.weight if whole is None else whole.add_(scores, alpha=member.weight)
                    weights += member.weight
            if not each:
                yield resizing.undo(whole, size, align_corners=self.align_corners), weights

    def _turned(self, model: nn.Module, inputs: Tensor, scale: float) -> Iterator[Tensor]:
        """Yield the scores (N, C, h, w) of each turn of (N, 3, h, w), in batches of at most `max_pixels`.

        Each turn is resized to `scale` by nearest neighbour, and its scores back. A turn and such a resize do not
        commute, but a turn and a bilinear resize do: the bilinear resize is done before, once for all turns.
        """
        n = len(inputs)
        height, width = (max(self._unit, round(side * scale / self._unit) * self._unit) for side in inputs.shape[2:])
        spare = [-length % self.multiple if self.fit == "pad" else 0 for length in (height, width)]
        for transposed in (False, True):
            turns = [TURNS[name] for name in self.turns if TURNS[name].transposed == transposed]
            at_once = max(1, self.largest_batch(inputs.device) // (n * height * width))
            bottom, right = spare[::-1] if transposed else spare
            for start in range(0, len(turns), at_once):
                part = turns[start : start + at_once]
                turned = torch.cat([turn.apply(inputs) for turn in part])
                batch = self._resized(turned, (width, height) if transposed else (height, width), "nearest")
                padded = F.pad(batch, (0, right, 0, bottom), mode="replicate")
                logits = self._run(model, padded)
                if (
                    not padded.shape == batch.shape == turned.shape
                ):  # logits may be smaller than the images, but not to cut the padding
                    logits = self._resized(logits, padded.shape[-2:])[..., : batch.shape[2], : batch.shape[3]]
                for turn, of_turn in zip(part, logits.chunk(len(part)), strict=True):
                    scores = MERGES[self.merge].score(of_turn.float())
                    if batch.shape != turned.shape:
                        scores = self._resized(scores, turned.shape[-2:], "nearest")
                    yield turn.undo(scores)

    def _run(self, model: nn.Module, batch: Tensor) -> Tensor:
        rows = max(1, self.largest_batch(batch.device) // (batch.shape[2] * batch.shape[3]))
        if len(batch) <= rows:
            return _logits_of(model(batch))
        return torch.cat([_logits_of(model(part)) for part in batch.split(rows)])

    @property
    def _unit(self) -> int:
        """The sides of resized images are multiples of this number."""
        return self.multiple if self.fit == "resize" else 1

    def _resized(self, x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size=size, mode=mode, align_corners=self.align_corners if mode == "bilinear" else None)


# The test-time augmentations of two competition solutions, unchanged; all except the second one used ttach. For your
# own results, use `TTA(scales=(0.75, 1.0, 1.25), flips="v")`.
PRESETS: dict[str, TTA] = {
    "seed_vflip_multiscale": TTA(scales=(0.75, 1.0, 1.25), flips="v", merge="logits-sum", resize="nearest"),
    "seed_hflip_multiscale": TTA(scales=(0.75, 1.0, 1.25), flips="h", merge="gmean", align_corners=True),
    # A vertical flip times rotations by 0, 180, 270 and 360 degrees makes six different turns. Differs: the solution
    # counted the turns by 0 and 360 degrees, which are equal, as two.
    "seed_turns_multiscale": TTA(
        scales=(0.75, 1.0, 1.25, 1.5),
        flips=("v", "rot180", "rot270", "h", "transpose"),
        merge="logits-sum",
        resize="nearest",
    ),
    "seed_flips_brightness": TTA(
        scales=(0.75, 1.0, 1.25),
        flips="hv",
        brightness=(0.9, 1.0, 1.1),
        merge="gmean",
        resize="nearest",
        brightness_of="input",
    ),
}


def _logits_of(output: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return the logits in the output of a model."""
    logits = output.get("out") if isinstance(output, Mapping) else output
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(output).__name__}"
        raise UsageError(f'a model must return logits (N, C, H, W), or a dict that has them as "out", got {got}')
    return logits


@contextmanager
def _in_eval_mode(members: Sequence[Member]) -> Iterator[None]:
    # The mode of each part is kept: norms may be frozen, in eval mode, within a model that trains.
    modes = [(part, part.training) for member in members for part in member.model.modules()]
    for member in members:
        member.model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
