"""Writes predictions: index PNG, overlay, and a manifest that says which image became which file."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkit.data.images import write_image, write_mask
from segkit.inference.predictor import Prediction
from segkit.visualize import create_palette, overlay, with_legend


class PredictionWriter:
    """Writes `mask/NAME.png`, `overlay/NAME.jpg` and a line of `manifest.csv` for each image.

    Names mirror the input's path below its folder. Two inputs that differ in their suffix alone keep
    it in their name (`a.png.png`).

    Args:
        out: The folder; made with the first image.
        class_names: In label order.
        names: Relative paths of all inputs, to see such clashes beforehand.
    """

    def __init__(self, out: Path, class_names: Sequence[str], names: Sequence[Path]) -> None:
        self.out = out
        self.class_names = class_names
        self.palette = create_palette(len(class_names))
        self.targets = _targets(names)
        self.rows: list[dict[str, object]] = []

    def write(self, name: Path, image: np.ndarray, prediction: Prediction) -> None:
        """Writes the files of one image; the manifest follows with `close`."""
        mask = self.out / "mask" / f"{self.targets[name]}.png"
        picture = self.out / "overlay" / f"{self.targets[name]}.jpg"
        for file in (mask, picture):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_mask(mask, prediction.mask, self.palette)
        drawn = overlay(image, prediction.mask, self.palette)
        write_image(picture, with_legend(drawn, prediction.mask, self.class_names, self.palette))
        shares = np.bincount(prediction.mask.ravel(), minlength=len(self.class_names)) / prediction.mask.size
        self.rows.append(
            {
                "image": name.as_posix(),
                "mask": mask.relative_to(self.out).as_posix(),
                "overlay": picture.relative_to(self.out).as_posix(),
                "height": image.shape[0],
                "width": image.shape[1],
                **{f"share/{n}": f"{s:.5f}" for n, s in zip(self.class_names, shares, strict=True)},
            }
        )

    def close(self) -> None:
        """Writes `manifest.csv`."""
        if not self.rows:
            return
        with (self.out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def _targets(names: Sequence[Path]) -> dict[Path, str]:
    """Output name of each input: without its suffix, where that is clear."""
    uses = Counter(name.with_suffix("") for name in names)
    return {name: (name.with_suffix("") if uses[name.with_suffix("")] == 1 else name).as_posix() for name in names}
