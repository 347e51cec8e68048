"""Prediction: the label map of an image, its probabilities, and pictures of it."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segkit.data.images import write_image, write_mask
from segkit.errors import UsageError, as_segkit_error
from segkit.files import make_folder, write_whole
from segkit.labels import background_of
from segkit.visualize import create_palette, overlay, shrink, with_legend

LARGEST_JPEG = 65_500  # pixels of a side
LARGEST_IN_NOTEBOOK = 1024  # pixels of a side


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What models predict for an image. A notebook shows it as a picture.

    Attributes:
        mask: (H, W) labels, uint8; uint16 with more than 255 classes.
        probs: (C, H, W) float32 probabilities of the classes, or None if they are not kept.
        class_names: The names of the classes, in label order.
        image: (H, W, 3) uint8 RGB, the image itself, or None if it is not kept.
    """

    mask: np.ndarray
    probs: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    image: np.ndarray | None = None

    def overlay(self, *, opacity: float = 0.5, legend: bool = False) -> np.ndarray:
        """Return the image with each object tinted and outlined in the colour of its class, (H, W, 3) uint8 RGB.

        Args:
            opacity: 0 for the bare image, 1 for flat colours.
            legend: Add a strip below the image, with the names of the classes that occur.

        Raises:
            UsageError: The image is not kept.
        """
        if self.image is None:
            raise UsageError("the prediction does not hold its image, so there is nothing to draw on")
        picture = overlay(self.image, self.mask, self._palette, opacity, background=self._background)
        return self._with_legend(picture) if legend else picture

    def save(self, path: str | os.PathLike, *, text: Mapping[str, str] | None = None) -> None:
        """Write a file of the kind that the suffix of `path` names; infer.py writes the same files.

        `.png`: the label map as an index PNG, whose pixel values are the labels, with a colour for each class; with
            more than 255 classes as a gray PNG of 16 bits.
        `.jpg`: the overlay with its legend, made smaller if no JPEG can hold it.
        `.npz`: `probs` (C, H, W) as float16, and `class_names`.

        Args:
            path: The file; its folder is made if it does not exist. An existing file is replaced.
            text: Text entries of a `.png`, by keyword.

        Raises:
            UsageError: The suffix is another one, the prediction does not hold what the file needs, or the file cannot
                be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".png", ".jpg", ".jpeg", ".npz"):
            raise UsageError(
                f"cannot save a prediction as {path}; the suffix must be .png (label map), .jpg (overlay) or .npz "
                "(probabilities)"
            )
        if suffix == ".npz" and self.probs is None:
            raise UsageError(f"cannot write {path}: the prediction does not hold its probabilities")
        make_folder(path.parent)
        try:
            if suffix == ".png":
                write_mask(path, self.mask, self._palette, text)
            elif suffix == ".npz":
                content = {"probs": self.probs.astype(np.float16), "class_names": np.array(self.class_names)}
                write_whole(path, lambda file: np.savez_compressed(file, **content))
            else:
                write_image(path, shrink(self.overlay(legend=True), LARGEST_JPEG))
        except OSError as error:
            raise as_segkit_error(error) or UsageError(f"cannot write {path}: {error.strerror or error}") from error

    def __repr__(self) -> str:
        found = [self._name(label) for label in np.unique(self.mask)]
        return f"Prediction({self.mask.shape[0]} x {self.mask.shape[1]} pixels (height x width): {', '.join(found)})"

    def _repr_png_(self) -> bytes:
        """Return the picture that a notebook shows: overlay and legend, or the colours of the classes only."""
        picture = self._palette[self.mask] if self.image is None else self.overlay()
        small, mask = shrink(picture, LARGEST_IN_NOTEBOOK), shrink(self.mask, LARGEST_IN_NOTEBOOK)
        file = io.BytesIO()
        Image.fromarray(with_legend(small, mask, self.class_names, self._palette)).save(file, "PNG")
        return file.getvalue()

    @property
    def _palette(self) -> np.ndarray:
        return create_palette(len(self.class_names) or int(self.mask.max()) + 1, self._background)

    @property
    def _background(self) -> int | None:
        return background_of(self.class_names) if self.class_names else 0

    def _with_legend(self, picture: np.ndarray) -> np.ndarray:
        return with_legend(picture, self.mask, self.class_names, self._palette)

    def _name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)
