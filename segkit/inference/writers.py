"""PredictionWriter: the files of each image, whose names mirror the names of the images."""

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segkit.data.images import open_image
from segkit.errors import MissingFileError, UsageError
from segkit.files import Fingerprint, make_folder
from segkit.inference.prediction import Prediction

SUFFIXES = {"mask": ".png", "overlay": ".jpg", "probs": ".npz"}
MADE_OF = "segkit"  # keyword of the text in a mask that says of which file it was made, and with which other files


class Written(NamedTuple):
    """What was written of an image.

    Attributes:
        row: Its row of the manifest.
        pixels: The number of pixels of each class.
    """

    row: dict[str, object]
    pixels: tuple[int, ...]


class PredictionWriter:
    """Write `mask/NAME.png`, `overlay/NAME.jpg` and `probs/NAME.npz`, see `Prediction.save`.

    NAME is the path of the image below its source, without the suffix. Images that differ only in their suffix keep
    it (`a.png.png`). Each file is written whole or not at all. A mask holds the size and the digest of the file that it
    was made of.

    Args:
        out: The folder of the results; it is made if it does not exist.
        class_names: The names of the classes, in label order.
        names: The relative paths of all images, to detect equal names.
        kinds: Some of `mask`, `overlay`, `probs`.
    """

    def __init__(
        self, out: Path, class_names: Sequence[str], names: Sequence[Path], kinds: Sequence[str] = ("mask", "overlay")
    ) -> None:
        self.out = out
        make_folder(out)
        self._place = os.stat(out)
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
        """Return whether all files of an image exist, are not empty and were made of the same source.

        Raises:
            DataError: The mask is damaged.
        """
        files = [self.file(kind, name) for kind in self.kinds]
        if not all(file.is_file() and file.stat().st_size for file in files):
            return False
        return "mask" not in self.kinds or set(self.kinds) <= set(self._made_of(name).get("kinds", self.kinds))

    def write(
        self, name: Path, image: np.ndarray | None, prediction: Prediction, source: Fingerprint | None = None
    ) -> Written:
        """Write the files of an image. Several threads may write at once.

        Args:
            name: One of `names`.
            image: (H, W, 3) uint8 RGB; only an overlay needs it.
            prediction: The prediction of the image.
            source: Size and digest of the file of the image.

        Raises:
            MissingFileError: The folder was removed or renamed in the meantime; it is not made again.
        """
        if not (os.path.exists(self.out) and os.path.samestat(os.stat(self.out), self._place)):
            raise MissingFileError(f"the folder {self.out} was removed or renamed while results were written to it")
        whole = replace(prediction, image=image, class_names=self.class_names)
        text = None if source is None else {MADE_OF: json.dumps({**source._asdict(), "kinds": self.kinds})}
        for kind in sorted(self.kinds, key="mask".__eq__):  # the mask comes last: if it exists, so do the other files
            whole.save(self.file(kind, name), text=text)
        return self._written(name, prediction.mask, source)

    def read_mask(self, name: Path) -> np.ndarray:
        """Return the label map (H, W) of an image from its file, uint8 or uint16.

        Raises:
            DataError: The file is missing or damaged.
        """
        with open_image(self.file("mask", name), sys.maxsize, "mask") as image:
            labels = np.asarray(image)
        return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)  # some versions of Pillow read int32

    def existing(self, name: Path) -> Written:
        """Return what an earlier run has written of an image, by its mask.

        Raises:
            DataError: The mask is missing or damaged.
            UsageError: The mask is not a label map with these classes.
        """
        mask, made_of = self.read_mask(name), self._made_of(name)
        if mask.ndim != 2 or mask.max() >= len(self.class_names):
            raise UsageError(
                f"{self.file('mask', name)} is not a label map with the {len(self.class_names)} classes of the model; "
                "choose another `out`"
            )
        known = {"bytes", "sha256"} <= made_of.keys()
        return self._written(name, mask, Fingerprint(made_of["bytes"], made_of["sha256"]) if known else None)

    def _made_of(self, name: Path) -> dict[str, Any]:
        """Return what the mask of an image says of its source; nothing if another program or version wrote it."""
        with open_image(self.file("mask", name), sys.maxsize, "mask") as image:
            try:
                stored = json.loads(image.info.get(MADE_OF, "{}"))
            except (TypeError, ValueError):
                return {}
        return stored if isinstance(stored, dict) else {}

    def _written(self, name: Path, mask: np.ndarray, source: Fingerprint | None) -> Written:
        pixels = np.bincount(mask.ravel(), minlength=len(self.class_names))
        row = {
            "image": name.as_posix(),
            **{kind: self.file(kind, name).relative_to(self.out).as_posix() for kind in self.kinds},
            "height": mask.shape[0],
            "width": mask.shape[1],
            "source_bytes": "" if source is None else source.bytes,
            "source_sha256": "" if source is None else source.sha256,
            **{f"share/{n}": f"{s:.5f}" for n, s in zip(self.class_names, pixels / mask.size, strict=True)},
        }
        return Written(row, tuple(pixels.tolist()))
