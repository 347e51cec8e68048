"""All image files are read and written here."""

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
from segkit.files import MAX_PIXELS
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
_BACK = {6: 8, 8: 6}  # the others undo themselves
# What Pillow's readers raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
_OPTIONS = {".jpg": {"quality": 90}, ".jpeg": {"quality": 90}}


class Reading(NamedTuple):
    """How image files are read.

    Attributes:
        exif: `apply` turns images as their EXIF orientation says, `ignore` leaves them as they lie in the file.
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
    """Reads an image file as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Args:
        path: The file.
        size: The expected (H, W), as the annotations give it. Where the file has that size only
            before it is turned, it is left unturned, since the annotations were drawn so.
        reduce: 1, 2, 4 or 8: by how much it is made smaller, each pixel the mean of a square; sizes are rounded
            up. Of a JPEG the details are then not even decoded.
        reading: What becomes of EXIF orientations, and which images are too large.

    Raises:
        DataError: the file is missing, not an image, damaged, too large, or of another size.
    """
    with open_image(path, reading.max_pixels) as image:
        header = _header(image, reading.exif)
        header.check_size(path, size)
        turn = reading.exif == "apply" and (size is None or size == header.turned)
        # Its squares begin at the corner where the file begins: one that is turned must hold whole ones.
        whole = header.orientation == 1 or not any(length % reduce for length in image.size)
        is_small = reduce == 1 or (whole and _decodes_small(image, reduce))
        rgb = to_rgb(_turn(image, header.orientation, turn))
        return np.array(rgb if is_small else rgb.reduce(reduce))


def reduction(size: tuple[int, int], at_least: int) -> int:
    """The largest of 1, 2, 4 and 8 by which both sides can be divided and stay at least `at_least`."""
    return max((k for k in (2, 4, 8) if min(size) // k >= at_least), default=1)


def reduce_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """The labels (H, W) at the middle of each square that `read_image(reduce=factor)` makes a pixel of."""
    rows, columns = (np.arange(0, length, factor) + factor // 2 for length in mask.shape)
    return mask[np.ix_(rows.clip(max=mask.shape[0] - 1), columns.clip(max=mask.shape[1] - 1))]


class ImageHeader(NamedTuple):
    """What an image file says of itself before it is decoded.

    Attributes:
        stored: (H, W) as the pixels lie in the file.
        turned: (H, W) once it is turned as its EXIF orientation says; as `stored` where that is ignored.
        orientation: EXIF's number, 1 for an image that is upright.
        mode: Pillow's name of its channels.
        transparent: Whether it has transparency.
        animated: Whether it has further frames or pages.
    """

    stored: tuple[int, int]
    turned: tuple[int, int]
    orientation: int
    mode: str
    transparent: bool
    animated: bool

    def check_size(self, path: str | os.PathLike, size: tuple[int, int] | None) -> None:
        """Raises DataError unless the image has this size, turned or not."""
        if size is not None and size not in (self.stored, self.turned):
            raise DataError(
                f"{path} is {self.turned[0]} x {self.turned[1]} pixels (height x width), but its annotations say "
                f"{size[0]} x {size[1]}"
            )


def read_image_header(path: str | os.PathLike, reading: Reading = AS_USUAL) -> ImageHeader:
    """Reads an image file's header; its pixels are not looked at.

    Raises:
        DataError: as in `read_image`, but for what only decoding shows.
    """
    with open_image(path, reading.max_pixels) as image:
        return _header(image, reading.exif)


class _UnlimitedPillow:
    """While any thread is in it, Pillow opens files of any size: the limit is ours, and is checked on the header."""

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
    """An image file, opened by Pillow; whatever is wrong with it, now or later, is a DataError.

    Args:
        path: The file.
        max_pixels: Larger ones are refused.
        what: What messages call it.
    """
    try:
        # Without a name Pillow does not map the file into memory, where it gets turned TIFFs wrong.
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
    # The class's own method decodes a whole PNG, to look for EXIF behind its pixels.
    orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    size = (image.height, image.width)
    other = size[::-1] if orientation in _ROTATED else size
    # Pillow gives the size of a TIFF, and later its pixels, as they are when turned.
    stored, turned = (other, size) if image.format == "TIFF" else (size, other)
    return ImageHeader(
        stored,
        turned if exif == "apply" else stored,
        orientation if orientation in range(1, 9) else 1,
        image.mode,
        "A" in image.mode or "transparency" in image.info,
        # An MPO is a photograph with a preview or a second eye behind it.
        image.format != "MPO" and getattr(image, "is_animated", False),
    )


def _decodes_small(image: Image.Image, factor: int) -> bool:
    """Tells a JPEG to be decoded at 1/factor, rounded up; whether the image now has that size."""
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
    if "transparency" in image.info:  # of a palette, which Pillow wants to be made RGBA first
        image = image.convert("RGBA")
    return image.convert("RGB")


def write_mask(path: str | os.PathLike, mask: np.ndarray, palette: np.ndarray) -> None:
    """Writes an (H, W) label map as an index PNG with colours; pixel values are the labels.

    Args:
        path: The PNG file; replaced as a whole.
        mask: Labels 0 to 255.
        palette: (256, 3) uint8.
    """
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    _save(image, path)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 RGB image; the suffix of `path` gives the format."""
    _save(Image.fromarray(image), path)


def _save(image: Image.Image, path: str | os.PathLike) -> None:
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp{path.suffix}")
    try:
        image.save(temporary, **_OPTIONS.get(path.suffix.lower(), {}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def list_images(folder: str | os.PathLike) -> list[Path]:
    """All image files below `folder`, in order of their paths; hidden ones are left out."""
    folder = Path(folder)
    found = [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
