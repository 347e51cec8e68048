"""PredictionWriter: the files of each image, whose names mirror the names of the images."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segkit.data.images import open_image
from segkit.inference.prediction import Prediction

SUFFIXES = {"mask": ".png", "overlay": ".jpg", "probs": ".npz"}


class PredictionWriter:
    """Write `mask/NAME.png`, `overlay/NAME.jpg` and `probs/NAME.npz`, see `Prediction.save`.

    NAME is the path of the image below its source, without the suffix. Images that differ only in their suffix keep
    it (`a.png.png`). Each file is written whole or not at all.

    Args:
        out: The folder of the results; it is made with the first image.
        class_names: The names of the classes, in label order.
        names: The relative paths of all images, to detect equal names.
        kinds: Some of `mask`, `overlay`, `probs`.
    """

    def __init__(
        self, out: Path, class_names: Sequence[str], names: Sequence[Path], kinds: Sequence[str] = ("mask", "overlay")
    ) -> None:
        self.out = out
        self.class_names = tuple(class_names)
        self.kinds = tuple(kinds)
        # The name of each image's files: without the suffix, unless another image has that name then.
        targets = {name: name.with_suffix("") for name in names}
        clashing = list(names)
        while clashing:
            uses = Counter(targets.values())
            clashing = [name for name, target in targets.items() if uses[target] > 1 and target != name]
            targets.update(zip(clashing, clashing, strict=True))
        self.targets = {name: target.as_posix() for name, target in targets.items()}

    def file(self, kind: str, name: Path) -> Path:
        """Return the path of a result of an image."""
        return self.out / kind / f"{self.targets[name]}{SUFFIXES[kind]}"

    def is_done(self, name: Path) -> bool:
        """Return whether all files of an image exist and are not empty."""
        files = [self.file(kind, name) for kind in self.kinds]
        return all(file.is_file() and file.stat().st_size for file in files)

    def write(self, name: Path, image: np.ndarray | None, prediction: Prediction) -> dict[str, object]:
        """Write the files of an image and return its row of the manifest. Several threads may write at once.

        Args:
            name: One of `names`.
            image: (H, W, 3) uint8 RGB; only an overlay needs it.
            prediction: The prediction of the image.
        """
        whole = replace(prediction, image=image, class_names=self.class_names)
        for kind in self.kinds:
            whole.save(self.file(kind, name))
        return self.row(name, prediction.mask)

    def read_mask(self, name: Path) -> np.ndarray:
        """Return the label map (H, W) of an image from its file, uint8 or uint16.

        Raises:
            DataError: The file is missing or damaged.
        """
        with open_image(self.file("mask", name), sys.maxsize, "mask") as image:
            labels = np.asarray(image)
        return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)  # some versions of Pillow read int32

    def row(self, name: Path, mask: np.ndarray | None = None) -> dict[str, object]:
        """Return the row of an image in the manifest; by default, of the label map in its file."""
        mask = self.read_mask(name) if mask is None else mask
        shares = np.bincount(mask.ravel(), minlength=len(self.class_names)) / mask.size
        return {
            "image": name.as_posix(),
            **{kind: self.file(kind, name).relative_to(self.out).as_posix() for kind in self.kinds},
            "height": mask.shape[0],
            "width": mask.shape[1],
            **{f"share/{n}": f"{s:.5f}" for n, s in zip(self.class_names, shares, strict=True)},
        }
