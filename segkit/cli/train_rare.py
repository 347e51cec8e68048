"""What --class-weights, --rare-threshold, --rare-crops and --mix make of the training masks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segkit.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from segkit.data import SegmentationDataset
    from segkit.folds.counts import ClassCounts


@dataclass(frozen=True)
class Rarity:
    """How training makes up for rare classes; what is not asked for is None or empty."""

    weights: "Tensor | None" = None
    shares: "np.ndarray | None" = None
    classes: tuple[int, ...] = ()
    mixing: "dict[str, Any] | None" = None


def measure_rarity(config: TrainConfig, data: "SegmentationDataset") -> Rarity:
    """Reads the masks, if a setting needs to know how much of each class there is, and says what it finds."""
    needs_counts = config.rare_threshold or config.rare_crops or config.mix == "copy-paste"
    if config.class_weights == "none" and not needs_counts:
        return Rarity(mixing=_mixing(config, (), None))
    from segkit.data.batches import repeat_factors
    from segkit.folds.counts import count_labels

    counts = count_labels((data.target(i) for i in range(len(data))), len(data.class_names))
    rare = rare_classes(counts)
    if needs_counts:
        print(f"rare   {', '.join(data.class_names[c] for c in rare) or 'no class'}")
    return Rarity(
        weights=_weights(config, counts, data.class_names),
        shares=repeat_factors(counts.images > 0, config.rare_threshold) if config.rare_threshold else None,
        classes=rare,
        mixing=_mixing(config, rare, counts),
    )


def rare_classes(counts: "ClassCounts") -> tuple[int, ...]:
    """The classes that occur, in fewer pixels than half the mean of those that do."""
    pixels = counts.pixels.sum(0)
    occurring = pixels[pixels > 0]
    return tuple(c for c, n in enumerate(pixels) if 0 < n < occurring.mean() / 2) if len(occurring) else ()


def _weights(config: TrainConfig, counts: "ClassCounts", names: tuple[str, ...]) -> "Tensor | None":
    from segkit.losses import class_weights

    if config.class_weights == "none":
        return None
    # Beyond some ten thousand, numbers are alike to `effective`: it counts images.
    table = counts.images if config.class_weights == "effective" else counts.pixels
    weights = class_weights(table.sum(0), config.class_weights)
    print("weights " + ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights.tolist(), strict=True)))
    return weights


def _mixing(config: TrainConfig, rare: tuple[int, ...], counts: "ClassCounts | None") -> dict[str, Any]:
    """The options of `train_loader` that mix two samples into one."""
    from segkit.data.samples import CopyPaste, cutmix

    if config.mix == "none":
        return {}
    if config.mix == "cutmix":
        return {"mix": cutmix}
    donors = [int(i) for i in (counts.images[:, list(rare)] > 0).any(1).nonzero()[0]]
    return {"mix": CopyPaste(rare), "donors": donors}
