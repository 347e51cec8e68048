"""Writes predictions image by image: index PNG, overlay, probabilities; names mirror those of the images."""

import csv
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from segkit.data.images import open_image, write_image, write_mask
from segkit.inference.predictor import Prediction
from segkit.visualize import create_palette, overlay, shrink, with_legend

SUFFIXES = {"mask": ".png", "overlay": ".jpg", "probs": ".npz"}
LARGEST_JPEG = 65_500  # pixels of a side


class PredictionWriter:
    """Writes `mask/NAME.png`, `overlay/NAME.jpg` and `probs/NAME.npz`, those of them that are asked for.

    The .npz holds `probs` (C, H, W) float16 and `class_names`. Names mirror the input's path below its
    folder. Two inputs that differ in their suffix alone keep it in their name (`a.png.png`). An overlay that is
    too large for a JPEG is made smaller. Each file is written beside its place and then moved there.

    Args:
        out: The folder; made with the first image.
        class_names: In label order.
        names: Relative paths of all inputs, to see such clashes beforehand.
        kinds: Some of `mask`, `overlay`, `probs`.
    """

    def __init__(
        self, out: Path, class_names: Sequence[str], names: Sequence[Path], kinds: Sequence[str] = ("mask", "overlay")
    ) -> None:
        self.out = out
        self.class_names = class_names
        self.palette = create_palette(len(class_names))
        self.kinds = tuple(kinds)
        self.targets = _targets(names)

    def file(self, kind: str, name: Path) -> Path:
        """Where a result of an image lies."""
        return self.out / kind / f"{self.targets[name]}{SUFFIXES[kind]}"

    def is_done(self, name: Path) -> bool:
        """Whether all that is asked for is there, and not empty."""
        files = [self.file(kind, name) for kind in self.kinds]
        return all(file.is_file() and file.stat().st_size for file in files)

    def write(self, name: Path, image: np.ndarray, prediction: Prediction) -> dict[str, object]:
        """Writes the files of an image; gives its row of the manifest. Threads may write at the same time."""
        mask = prediction.mask
        files = {kind: self.file(kind, name) for kind in self.kinds}
        for file in files.values():
            file.parent.mkdir(parents=True, exist_ok=True)
        if "mask" in files:
            write_mask(files["mask"], mask, self.palette)
        if "overlay" in files:
            drawn = with_legend(overlay(image, mask, self.palette), mask, self.class_names, self.palette)
            write_image(files["overlay"], shrink(drawn, LARGEST_JPEG))
        if "probs" in files:
            _write_probs(files["probs"], prediction.probs, self.class_names)
        return self.row(name, mask)

    def read_mask(self, name: Path) -> np.ndarray:
        """The label map (H, W) uint8 of an image, from its file.

        Raises:
            DataError: it is missing or damaged.
        """
        with open_image(self.file("mask", name), sys.maxsize, "mask") as image:
            return np.asarray(image)

    def row(self, name: Path, mask: np.ndarray | None = None) -> dict[str, object]:
        """The image's row of the manifest; without a mask, of the one in its file."""
        mask = self.read_mask(name) if mask is None else mask
        shares = np.bincount(mask.ravel(), minlength=len(self.class_names)) / mask.size
        return {
            "image": name.as_posix(),
            **{kind: self.file(kind, name).relative_to(self.out).as_posix() for kind in self.kinds},
            "height": mask.shape[0],
            "width": mask.shape[1],
            **{f"share/{n}": f"{s:.5f}" for n, s in zip(self.class_names, shares, strict=True)},
        }


def write_table(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes rows of the same columns as CSV; nothing where there are none."""
    rows = list(rows)
    if not rows:
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, file)


def _write_probs(file: Path, probs: np.ndarray, class_names: Sequence[str]) -> None:
    temporary = file.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp.npz")
    try:
        np.savez_compressed(temporary, probs=probs.astype(np.float16), class_names=np.array(class_names))
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _targets(names: Sequence[Path]) -> dict[Path, str]:
    """Output name of each input: without its suffix, where no other input has that name."""
    targets = {name: name.with_suffix("") for name in names}
    while True:
        uses = Counter(targets.values())
        clashing = [name for name, target in targets.items() if uses[target] > 1 and target != name]
        if not clashing:
            return {name: target.as_posix() for name, target in targets.items()}
        targets.update(zip(clashing, clashing, strict=True))
