"""Shapes of labelling tools as polygons or RLE, as a `Region` has them."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from segkit.errors import DataError

FLATNESS = 0.05  # pixels between an ellipse and the middle of an edge of its polygon


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Return the corners of an upright rectangle, (4, 2) x and y, from the upper left one clockwise."""
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """Return an upright ellipse around (x, y) as a polygon of the same area, (N, 2) x and y."""
    radius = max(abs(radius_x), abs(radius_y), FLATNESS)
    count = min(1000, max(16, math.ceil(math.pi / math.acos(1 - FLATNESS / radius))))
    angles = np.arange(count) * 2 * math.pi / count
    larger = math.sqrt(2 * math.pi / count / math.sin(2 * math.pi / count))  # the polygon lies inside the ellipse
    return np.stack([x + larger * radius_x * np.cos(angles), y + larger * radius_y * np.sin(angles)], axis=1)


def turn(points: np.ndarray, degrees: float, x: float, y: float) -> np.ndarray:
    """Return points (N, 2) after a rotation around (x, y), clockwise as one sees the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - (x, y)) @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def polygon(points: np.ndarray) -> list[list[float]]:
    """Return points (N, 2) as the segmentation of a region."""
    return [points.ravel().tolist()]


def rle(crop: np.ndarray, left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as the segmentation of a region; what lies outside the image is cut off.

    Args:
        crop: (h, w), not 0 inside the region.
        left: Column of the image at which the crop begins.
        top: Row of the image at which it begins.
        size: (H, W) of the image.
    """
    mask = np.zeros(size, dtype=np.uint8, order="F")
    first_row, first_column = max(top, 0), max(left, 0)
    inside = crop[first_row - top : max(size[0] - top, 0), first_column - left : max(size[1] - left, 0)]
    mask[first_row : first_row + inside.shape[0], first_column : first_column + inside.shape[1]] = inside != 0
    return {"size": list(size), "counts": coco_mask.encode(mask)["counts"].decode()}  # text, as JSON has it


def read_png(content: bytes) -> np.ndarray:
    """Return the gray values or the alpha of a PNG in memory, (h, w) uint8.

    Raises:
        DataError: It is not such an image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return np.array(image.getchannel("A") if image.mode == "RGBA" else image.convert("L"))
    except UnidentifiedImageError as error:  # the message names an object in memory
        raise DataError("its mask is not a PNG") from error
    except Exception as error:  # Pillow's decoders raise exceptions of any kind on damaged files
        raise DataError(f"its mask is a damaged PNG: {error}") from error


def decode_base64(text: Any, what: str) -> bytes:
    """Return the bytes that a text has in base64.

    Args:
        text: The text; other values are refused.
        what: What the message calls it.

    Raises:
        DataError: It is not base64.
    """
    try:
        return base64.b64decode(text)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is not base64") from error
