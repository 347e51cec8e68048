"""TTA: runs models over the views of images and merges what they say."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.tta.merge import MERGES, Accumulator
from segkit.tta.views import TURNS, View, turns_of

LARGEST_ON_CPU, LARGEST_ON_GPU = 400_000, 4 * 2**20  # pixels of a batch


class Member(NamedTuple):
    """A model of an ensemble, and what turns RGB images (N, 3, H, W) float32 in 0..255 into its input."""

    model: nn.Module
    prepare: Callable[[Tensor], Tensor]
    weight: float = 1.0


class Uncertainty(NamedTuple):
    """What the views of images agree on, and how far.

    Attributes:
        probs: (N, C, H, W) mean probabilities.
        std: (N, H, W) standard deviation, over the views, of the likeliest class's probability.
        entropy: (N, H, W) entropy of the mean probabilities, in nats.
    """

    probs: Tensor
    std: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class TTA:
    """Test-time augmentation: `TTA(scales=(0.75, 1.0, 1.25), flips="v")(model, images)`.

    Each scale is resized from the image itself, once, and what it gives is resized to the image's exact
    size. The turns of one scale run as one batch. `print(tta)` lists the views.

    Args:
        scales: Factors of height and width.
        flips: `none`, `h`, `v`, `hv` (both, and both at once), `d4` (with the quarter turns), or names of
            `segkit.tta.TURNS`. The image as it is always takes part, and nothing takes part twice.
        brightness: Factors of the RGB values, clipped at white.
        merge: Of the views' probabilities: `mean`; `gmean`, the geometric mean, which is the softmax of the
            mean logits; `max` and `min`, scaled to sum to 1; `vote`, the share of views that name the class;
            `sharpened`, the mean of the squares, scaled to sum to 1. `logits` gives the mean logits.
        align_corners: Of the resizing, as in `torch.nn.functional.interpolate`.
        multiple: The sides of scaled images are multiples of this, for models that take no others.
        fit: How: `resize` rounds the size, `pad` repeats the border at the right and below.
        max_pixels: Pixels of a batch, beyond which the turns of a scale run apart. By default 4 million on a GPU; on a
            CPU 400,000, since the maps of a larger batch leave the processor's caches and it takes longer.
    """

    scales: Sequence[float] = (1.0,)
    flips: str | Sequence[str] = "none"
    brightness: Sequence[float] = (1.0,)
    merge: str = "mean"
    align_corners: bool = False
    multiple: int = 1
    fit: str = "resize"
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for name in ("scales", "brightness"):
            values = tuple(dict.fromkeys(float(v) for v in getattr(self, name)))
            if not values or not min(values) > 0:
                raise ValueError(f"{name} must be positive numbers, got {getattr(self, name)}")
            object.__setattr__(self, name, values)
        for name, known in (("merge", tuple(MERGES)), ("fit", ("resize", "pad"))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("multiple", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        turns_of(self.flips)

    @classmethod
    def preset(cls, name: str) -> "TTA":
        """The test-time augmentations that segkit grew from, see `segkit.tta.engine.PRESETS`."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}, expected one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @property
    def turns(self) -> tuple[str, ...]:
        """Names of the turns, the identity first."""
        return turns_of(self.flips)

    @property
    def views(self) -> tuple[View, ...]:
        """What each model sees of an image: every one of these once."""
        turns = sorted(self.turns, key=lambda name: TURNS[name].transposed)  # those of one shape run together
        return tuple(View(*view) for view in product(self.scales, self.brightness, turns))

    def __str__(self) -> str:
        parts = {"scales": self.scales, "brightness": self.brightness, "turns": self.turns}
        named = [f"{name} {', '.join(_short(v) for v in values)}" for name, values in parts.items() if len(values) > 1]
        count = len(self.views)
        return f"{count} views: {' x '.join(named)}; {self.merge}" if count > 1 else f"1 view: scale {self.scales[0]:g}"

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> probabilities (N, C, H, W) float32; the model's mode is kept.

        Raises:
            ValueError: `brightness` for a model without `preprocessing`, which says what white is.
        """
        return self.ensemble(*self._alone(model, images))

    @torch.inference_mode()
    def ensemble(self, members: Sequence[Member], images: Tensor) -> Tensor:
        """RGB images (N, 3, H, W) float32 in 0..255 -> the weighted mean, or other merge, over members and views."""
        total = Accumulator(MERGES[self.merge])
        with _evaluating(members):
            for scores, weight in self._scores(members, images, each=not total.merge.linear):
                total.add(scores, weight)
        return total.result()

    @torch.inference_mode()
    def each(self, member: Member, images: Tensor) -> Iterator[Tensor]:
        """RGB images (N, 3, H, W) float32 in 0..255 -> scores (N, C, H, W) of one view after another.

        They are the parts of the merge, as probabilities or logits, in the order of `views`.
        """
        with _evaluating([member]):
            for scores, _ in self._scores([member], images, each=True):
                yield scores

    @torch.inference_mode()
    def uncertainty(self, model: nn.Module, images: Tensor) -> Uncertainty:
        """Mean probabilities of normalised images (N, 3, H, W), and how far the views differ."""
        members, images = self._alone(model, images)
        mean, squares, count = 0, 0, len(self.views)
        with _evaluating(members):
            for scores, _ in self._scores(members, images, each=True):
                probs = scores if MERGES[self.merge].score is MERGES["mean"].score else scores.softmax(1)
                mean, squares = mean + probs / count, squares + probs.square() / count
        likeliest = mean.argmax(1, keepdim=True)
        variance = (squares - mean.square()).gather(1, likeliest)[:, 0]
        return Uncertainty(mean, variance.clamp(min=0).sqrt(), torch.special.entr(mean).sum(1))

    def _alone(self, model: nn.Module, images: Tensor) -> tuple[list[Member], Tensor]:
        if self.brightness == (1.0,):
            return [Member(model, lambda x: x)], images  # all but brightness commutes with the normalisation
        if not hasattr(model, "preprocessing"):
            raise ValueError(
                "brightness needs a model with `preprocessing`, which says what its normalised images were"
            )
        return [Member(model, model.preprocessing.normalise)], model.preprocessing.denormalise(images)

    def _scores(self, members: Sequence[Member], images: Tensor, *, each: bool) -> Iterator[tuple[Tensor, float]]:
        """Scores at the images' size with their weight: view by view, or weighted and summed for each scale."""
        size = tuple(images.shape[-2:])
        for scale in self.scales:
            scaled = self._scaled(images, scale)
            whole, weights = None, 0.0
            for factor, member in product(self.brightness, members):
                inputs = member.prepare(scaled if factor == 1 else (scaled * factor).clamp(max=255))
                for scores in self._turned(member.model, inputs):
                    if each:
                        yield self._resized(scores, size), member.weight
                        continue
                    whole = scores * member.weight if whole is None else whole.add_(scores, alpha=member.weight)
                    weights += member.weight
            if not each:
                yield self._resized(whole, size), weights

    def _turned(self, model: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
        """The scores (N, C, h, w) of each turn of (N, 3, h, w), as many in a batch as `max_pixels` allows."""
        n, _, height, width = inputs.shape
        spare = [-length % self.multiple if self.fit == "pad" else 0 for length in (height, width)]
        for transposed in (False, True):
            turns = [TURNS[name] for name in self.turns if TURNS[name].transposed == transposed]
            at_once = max(1, self._largest_batch(inputs) // (n * height * width))
            bottom, right = spare[::-1] if transposed else spare
            for start in range(0, len(turns), at_once):
                part = turns[start : start + at_once]
                batch = torch.cat([turn.apply(inputs) for turn in part])
                logits = self._run(model, F.pad(batch, (0, right, 0, bottom), mode="replicate"))
                logits = logits[..., : batch.shape[2], : batch.shape[3]]
                for turn, of_turn in zip(part, logits.chunk(len(part)), strict=True):
                    yield turn.undo(MERGES[self.merge].score(of_turn.float()))

    def _run(self, model: nn.Module, batch: Tensor) -> Tensor:
        rows = max(1, self._largest_batch(batch) // (batch.shape[2] * batch.shape[3]))
        if len(batch) <= rows:
            return model(batch)
        return torch.cat([model(part) for part in batch.split(rows)])

    def _largest_batch(self, images: Tensor) -> int:
        """Pixels of a batch at most."""
        return self.max_pixels or (LARGEST_ON_CPU if images.device.type == "cpu" else LARGEST_ON_GPU)

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        unit = self.multiple if self.fit == "resize" else 1
        height, width = (max(unit, round(length * scale / unit) * unit) for length in images.shape[-2:])
        return self._resized(images, (height, width))

    def _resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)


PRESETS: dict[str, TTA] = {
    "seed_vflip_multiscale": TTA(scales=(0.75, 1.0, 1.25), flips="v", merge="gmean"),
    "seed_hflip_multiscale": TTA(scales=(0.75, 1.0, 1.25), flips="h", merge="gmean", align_corners=True),
    # a vertical flip x rotations by 0, 180 and 270 degrees: six different turns
    "seed_turns_multiscale": TTA(
        scales=(0.75, 1.0, 1.25, 1.5), flips=("v", "rot180", "rot270", "h", "transpose"), merge="gmean"
    ),
    "seed_flips_brightness": TTA(scales=(0.75, 1.0, 1.25), flips="hv", brightness=(0.9, 1.0, 1.1), merge="gmean"),
}


def _short(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else value


@contextmanager
def _evaluating(members: Sequence[Member]) -> Iterator[None]:
    modes = [(member.model, member.model.training) for member in members]
    for model, _ in modes:
        model.eval()
    try:
        yield
    finally:
        for model, training in modes:
            model.train(training)
