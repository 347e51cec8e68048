"""Label maps that are image files."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from segkit.data.images import DataError


def read_values(path: Path) -> np.ndarray:
    """The pixel values (H, W) of a gray or index image, of any integer type; gray may be stored as RGB.

    Raises:
        DataError: the file is in colours, lossy, damaged or no image.
    """
    values = _open(path)
    if values.ndim == 2:
        return values
    if values.shape[2] > 2 and (values[..., 1:3] != values[..., :1]).any():
        raise DataError(f"{path} is a mask in colours; a palette file (--palette) must say what they mean")
    return values[..., 0]


def read_colours(path: Path) -> np.ndarray:
    """The mask as (H, W, 3) uint8 RGB.

    Raises:
        DataError: the file is lossy, damaged or no image.
    """
    return _open(path, "RGB")


def _open(path: Path, mode: str | None = None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                raise DataError(f"the mask {path} is a JPEG, whose compression alters labels; give PNG files")
            return np.array(image if mode is None else image.convert(mode))
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that can be read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the mask {path} is damaged or unreadable: {error}") from error
