"""Reading and writing of all image files."""

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from segkit.errors import DataError
from segkit.files import MAX_PIXELS, write_whole
from segkit.names import check_known

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {6: 8, 8: 6}  # the orientation that undoes another; all others undo themselves
# The exceptions that Pillow's readers raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
_OPTIONS = {".jpg": {"quality": 90}, ".jpeg": {"quality": 90}}


class Reading(NamedTuple):
    """How image files are read.

    Attributes:
        exif: `apply` turns images as their EXIF orientation says, `ignore` leaves them as they are stored.
        max_pixels: Larger images are refused before they are decoded.
    """

    exif: Literal["apply", "ignore"] = "apply"
    max_pixels: int = MAX_PIXELS


AS_USUAL = Reading()


def create_reading(exif: str, max_pixels: int) -> Reading:
    """Return how image files are read, see `Reading`; raise UsageError if `exif` is another word."""
    check_known("`exif`", exif, ("apply", "ignore"))
    return Reading(exif, max_pixels)


def read_image(
    path: str | os.PathLike,
    size: tuple[int, int] | None = None,
    *,
    reduce: int = 1,
    reading: Reading = AS_USUAL,
) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Args:
        path: The file.
        size: The (H, W) that its annotations have. If the file has this size only before it is turned, it is not
            turned, because the annotations were drawn on it like that.
        reduce: Factor 1, 2, 4 or 8 by which the image is made smaller: each pixel is the mean of a square; sizes are
            rounded up. A JPEG is then decoded faster, without the details.
        reading: Whether EXIF orientations are applied, and which images are too large.

    Raises:
        DataError: The file is missing, not an image, damaged, too large, or of another size.
    """
    with open_image(path, reading.max_pixels) as image:
        header = _header(image, reading.exif)
        header.check_size(path, size)
        turn = reading.exif == "apply" and (size is None or size == header.turned)
        # A JPEG is reduced in squares from its stored corner; after a turn, only whole squares are the same ones.
        whole = header.orientation == 1 or not any(length % reduce for length in image.size)
        is_small = reduce == 1 or (whole and _decodes_small(image, reduce))
        rgb = to_rgb(_turn(image, header.orientation, turn))
        return np.array(rgb if is_small else rgb.reduce(reduce))


def reduction(size: tuple[int, int], at_least: int) -> int:
    """Return the largest of 1, 2, 4 and 8 by which both sides can be divided and stay at least `at_least`."""
    return max((k for k in (2, 4, 8) if min(size) // k >= at_least), default=1)


def reduce_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """Return the label at the middle of each square that is one pixel of `read_image(reduce=factor)`."""
    rows, columns = (np.arange(0, length, factor) + factor // 2 for length in mask.shape)
    return mask[np.ix_(rows.clip(max=mask.shape[0] - 1), columns.clip(max=mask.shape[1] - 1))]


class ImageHeader(NamedTuple):
    """What an image file says about itself before it is decoded.

    Attributes:
        stored: (H, W) of the stored pixels.
        turned: (H, W) after it is turned as its EXIF orientation says; same as `stored` if that is ignored.
        orientation: EXIF orientation, 1 for an upright image.
        mode: Pillow's name of its channels.
        transparent: Whether it has transparency.
        animated: Whether it has several frames or pages.
    """

    stored: tuple[int, int]
    turned: tuple[int, int]
    orientation: int
    mode: str
    transparent: bool
    animated: bool

    def check_size(self, path: str | os.PathLike, size: tuple[int, int] | None) -> None:
        """Raise DataError unless the image has this size, turned or not."""
        if size is not None and size not in (self.stored, self.turned):
            raise DataError(
                f"{path} is {self.turned[0]} x {self.turned[1]} pixels (height x width), but its annotations say "
                f"{size[0]} x {size[1]}"
            )


def read_image_header(path: str | os.PathLike, reading: Reading = AS_USUAL) -> ImageHeader:
    """Read the header of an image file, without decoding the pixels.

    Raises:
        DataError: As `read_image`, except for damage that only decoding finds.
    """
    with open_image(path, reading.max_pixels) as image:
        return _header(image, reading.exif)


class _UnlimitedPillow:
    """Lets Pillow open files of any size while a thread is in this context; `open_image` checks our limit itself."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limit = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit


_unlimited_pillow = _UnlimitedPillow()


@contextmanager
def open_image(path: str | os.PathLike, max_pixels: int, what: str = "image") -> Iterator[Image.Image]:
    """Open an image file with Pillow; errors of the file, also while it is decoded, become a DataError.

    Args:
        path: The file.
        max_pixels: Larger images are refused.
        what: What messages call the file.
    """
    try:
        # With a path, Pillow maps the file into memory, and then reads turned TIFFs wrongly.
        with _unlimited_pillow, open(path, "rb") as file, Image.open(file) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"the {what} {path} has {image.height} x {image.width} pixels (height x width), more than "
                    f"{max_pixels}; `max_pixels` allows more"
                )
            yield image
    except FileNotFoundError:
        raise DataError(f"there is no {what} at {path}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that can be read: {_beginning(path)}") from None
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"the {what} {path} is damaged or unreadable: {error}") from error


def _beginning(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
    return f"it starts with {head.decode('ascii', 'backslashreplace')!r}" if head else "it is empty"


def _header(image: Image.Image, exif: str) -> ImageHeader:
    # PngImageFile.getexif would decode the whole file, to look for EXIF behind the pixels.
    orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    size = (image.height, image.width)
    other = size[::-1] if orientation in _ROTATED else size
    # Pillow reports the size of a TIFF, and later its pixels, after the turn.
    stored, turned = (other, size) if image.format == "TIFF" else (size, other)
    return ImageHeader(
        stored,
        turned if exif == "apply" else stored,
        orientation if orientation in range(1, 9) else 1,
        image.mode,
        "A" in image.mode or "transparency" in image.info,
        # An MPO is a photograph followed by a preview or by the picture of a second lens.
        image.format != "MPO" and getattr(image, "is_animated", False),
    )


def _decodes_small(image: Image.Image, factor: int) -> bool:
    """Ask for a JPEG to be decoded at 1/factor, rounded up; returns whether the image now has that size."""
    expected = tuple(-(-length // factor) for length in image.size)
    image.draft(None, (image.width // factor, image.height // factor))
    return image.size == expected


def _turn(image: Image.Image, orientation: int, turn: bool) -> Image.Image:
    is_turned = image.format == "TIFF"
    if orientation == 1 or turn == is_turned:
        return image
    return image.transpose(_TURNS[orientation if turn else _BACK.get(orientation, orientation)])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; values of 16 bits are scaled to 8."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):  # convert("RGB") would clip 16 bits at 255
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.uint8(np.clip(values / 257, 0, 255).round())).convert("RGB")
    if "transparency" in image.info:  # of a palette: Pillow asks for RGBA first
        image = image.convert("RGBA")
    return image.convert("RGB")


def write_mask(path: str | os.PathLike, mask: np.ndarray, palette: np.ndarray) -> None:
    """Write an (H, W) label map as an index PNG with colours; the pixel values are the labels.

    Args:
        path: The PNG file; if it exists, it is replaced.
        mask: (H, W) labels 0 to 255.
        palette: (256, 3) uint8 RGB.
    """
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    _save(image, path)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format of the suffix of `path`."""
    _save(Image.fromarray(image), path)


def _save(image: Image.Image, path: str | os.PathLike) -> None:
    options = _OPTIONS.get(Path(path).suffix.lower(), {})
    write_whole(path, lambda temporary: image.save(temporary, **options))


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Return all image files below `folder`, in order of their paths, without hidden ones."""
    folder = Path(folder)
    found = [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
