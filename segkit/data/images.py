"""Read and write image files."""

import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from segkit.errors import DataError, SegkitError, UsageError, as_segkit_error
from segkit.files import MAX_PIXELS, is_file, write_whole
from segkit.names import check_known

# The formats that are read, by Pillow's names, and the suffixes of their files. Pillow knows more, but not all of these
# are pixels only: to open an EPS file, it starts Ghostscript.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c"),
    "TGA": (".tga",),
    "HEIF": (".heic", ".heif", ".hif"),  # read only if the package pillow-heif is registered; otherwise an error
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION_TAG = 0x0112
_BITS_TAG = 258  # tag of a TIFF: bits of each channel
_WHITE_TAG = 262  # tag of a TIFF: 0 if the smallest value is white
_KIND_TAG = 254  # tag of a page of a TIFF: 1 is a smaller copy of another page
_DIMMEST = 16384  # an image of 16 bits without a greater value would be dark: at most a quarter of white
_DIM = (
    "{name} has 16 bits for each value, but none is above 16383: most likely it has 10, 12 or 14 bits, and would be "
    "dark; convert it to 8 bits"
)
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
_OPTIONS = {".jpg": {"quality": 90}, ".jpeg": {"quality": 90}}


class Reading(NamedTuple):
    """How image files are read.

    Attributes:
        exif: `apply` rotates images by their EXIF orientation, `ignore` leaves them as they are stored.
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
    """Read an image file of one of `FORMATS` as (H, W, 3) uint8 RGB, rotated by its EXIF orientation.

    Of several pages or frames, the first is read. Values of more than 8 bits are scaled, see `to_rgb`.

    Args:
        path: The file.
        size: The (H, W) that its annotations have. If the file has this size only before the rotation, it is not
            rotated, because the annotations were drawn on the stored image.
        reduce: Factor 1, 2, 4 or 8 by which the image is made smaller: each pixel is the mean of a square; sizes are
            rounded up. A JPEG is then decoded faster, without the details.
        reading: Whether EXIF orientations are applied, and which images are too large.

    Raises:
        DataError: The file is missing, not an image, damaged, too large, of another size, or has values whose range is
            unknown.
        MachineError: The machine cannot read it, for example because too many files are open.
    """
    with open_image(path, reading.max_pixels) as image:
        header = _header(image, reading.exif)
        header.check_size(path, size)
        # A JPEG is reduced in squares from its stored corner; after a rotation, only whole squares are the same ones.
        whole = header.orientation == 1 or not any(length % reduce for length in image.size)
        is_small = reduce == 1 or (whole and _decodes_small(image, reduce))
        image.load()
    turn = reading.exif == "apply" and (size is None or size == header.turned)
    rgb = to_rgb(image, header.bits, path)
    if header.orientation != 1 and turn != (image.format == "TIFF"):  # Pillow has rotated a TIFF already
        rgb = rgb.transpose(_TURNS[header.orientation if turn else _BACK.get(header.orientation, header.orientation)])
    return np.array(rgb if is_small else rgb.reduce(reduce))


def turn_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Return a label map (H, W) of the stored pixels, rotated by an EXIF orientation of 1 to 8."""
    if orientation == 1:
        return mask
    return np.array(Image.fromarray(mask).transpose(_TURNS[orientation]))


def reduce_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """Return the label at the middle of each square that is one pixel of `read_image(reduce=factor)`."""
    rows, columns = (np.arange(0, length, factor) + factor // 2 for length in mask.shape)
    return mask[np.ix_(rows.clip(max=mask.shape[0] - 1), columns.clip(max=mask.shape[1] - 1))]


class ImageHeader(NamedTuple):
    """What an image file says about itself before it is decoded.

    Attributes:
        stored: (H, W) of the stored pixels.
        turned: (H, W) after the rotation by its EXIF orientation; same as `stored` if that is ignored.
        orientation: EXIF orientation, 1 for an upright image.
        mode: Pillow's name of its channels.
        bits: Bits of each value: 8, 16, 32 (also for float), or another number of up to 16 that the file states.
        transparent: Whether it has transparency.
        animated: Whether it has several frames or pages.
    """

    stored: tuple[int, int]
    turned: tuple[int, int]
    orientation: int
    mode: str
    bits: int
    transparent: bool
    animated: bool

    def check_size(self, path: str | os.PathLike, size: tuple[int, int] | None) -> None:
        """Raise DataError unless the image has this size, rotated or not."""
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
    """Let Pillow open files of any size while a thread is in this context; `open_image` checks our limit itself."""

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
    """Open an image file of one of `FORMATS` with Pillow, whose errors become a DataError, also in the `with` block.

    Only decode in the block: the decoders raise exceptions of any kind on damaged files, so all are caught.

    Args:
        path: The file.
        max_pixels: Larger images are refused.
        what: What messages call the file.

    Raises:
        DataError: The file is missing, not an image, damaged or too large.
        MachineError: The machine cannot read it, for example because too many files are open.
    """
    try:
        # With a path, Pillow maps the file into memory, and then reads rotated TIFFs wrongly.
        with _unlimited_pillow, open(path, "rb") as file, _identify(file, Path(path)) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"the {what} {path} has {image.height} x {image.width} pixels (height x width), more than "
                    f"{max_pixels}; `max_pixels` allows more"
                )
            yield image
    except (SegkitError, MemoryError):
        raise
    except FileNotFoundError:
        raise DataError(f"there is no {what} at {path}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # Pillow's own errors have no number
            named = OSError(error.errno, error.strerror, os.fspath(path))  # an error while reading has no name
            raise as_segkit_error(named) or DataError(f"cannot read the {what} {path}: {error.strerror}") from error
        raise DataError(f"the {what} {path} is damaged or unreadable: {error}") from error


def _identify(file: BinaryIO, path: Path) -> Image.Image:
    """Open an image without decoding it."""
    Image.init()  # registers all formats; some versions of Pillow have no AVIF
    # A TGA file has no signature: by its content, a damaged file of another format may be taken for one.
    formats = [name for name in FORMATS if name in Image.OPEN and (name != "TGA" or path.suffix.lower() == ".tga")]
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(12)
    reason = f"it starts with {head[:8].decode('ascii', 'backslashreplace')!r}" if head else "it is empty"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif"):
        reason = "it is a HEIC file, as phones write them; convert it to JPEG"
    raise DataError(f"{path} is not an image that can be read: {reason}")


def _header(image: Image.Image, exif: str) -> ImageHeader:
    # PngImageFile.getexif would decode the whole file, to look for EXIF behind the pixels.
    orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    size = (image.height, image.width)
    other = size[::-1] if orientation in ROTATED else size
    # Pillow reports the size of a TIFF, and later its pixels, after the rotation.
    stored, turned = (other, size) if image.format == "TIFF" else (size, other)
    return ImageHeader(
        stored,
        turned if exif == "apply" else stored,
        orientation if orientation in range(1, 9) else 1,
        image.mode,
        bits_of(image),
        "A" in image.mode or "transparency" in image.info,
        has_pages(image),
    )


def has_pages(image: Image.Image) -> bool:
    """Return whether a file has several pages or frames; previews and the image of a second lens do not count."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return False
    if image.format != "TIFF":
        return True
    found = False
    for page in range(1, image.n_frames):
        image.seek(page)
        if not image.tag_v2.get(_KIND_TAG, 0) & 1:
            found = True
            break
    image.seek(0)
    return found


def _decodes_small(image: Image.Image, factor: int) -> bool:
    """Ask for a JPEG to be decoded at 1/factor, rounded up; return whether the image now has that size."""
    if min(image.size) < factor:
        return False
    expected = tuple(-(-length // factor) for length in image.size)
    image.draft(None, (image.width // factor, image.height // factor))
    return image.size == expected


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the stored form of the pixels, such as "RGB;16B"; "" once they are decoded."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def largest_value(image: Image.Image) -> int | None:
    """Return the value of a PPM that means white, if Pillow will scale it to the largest of 8 or 16 bits, or None."""
    if image.format != "PPM" or not image.tile or not image.tile[0][0].startswith("ppm"):
        return None
    return int(image.tile[0][3][1])


def bits_of(image: Image.Image) -> int:
    """Return the bits of each value, see `ImageHeader`; of an image that is not decoded yet."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return 32
    if image.format == "TIFF":
        return max(8, *np.ravel(image.tag_v2.get(_BITS_TAG, 8)).tolist())
    if image.format == "PPM" and largest_value(image) is not None:
        return 8 if largest_value(image) < 256 else 16
    return 16 if image.mode.startswith("I") or (image.format == "PNG" and ";16" in raw_mode(image)) else 8


def to_rgb(image: Image.Image, bits: int | None = None, name: str | os.PathLike = "the image") -> Image.Image:
    """Convert an image of any mode to RGB of 8 bits.

    Of gray values with more than 8 bits, these are read from black to white:

    - float: 0 to 1; or 0 to 255 if all are whole numbers, or one is above 100, which neither percent nor brightness
      from 0 to 1 with highlights is.
    - 32 bits: 0 to 255.
    - 16 bits: 0 to 65535; or 0 to 255 if none is greater. If none is above 16383, they are refused: most
      likely they have 10, 12 or 14 bits, as those of cameras.
    - A number of bits that the file states, such as 12: all values of so many bits.

    Args:
        image: The image, decoded.
        bits: See `ImageHeader`. By default from the image, if its pixels are not decoded yet.
        name: What messages call it.

    Raises:
        DataError: The values have an unknown range.
    """
    bits = bits_of(image) if bits is None else bits
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):  # convert("RGB") would clip 16 bits at 255
        is_scaled = image.format in ("PPM", "JPEG2000")  # Pillow scales them from the stated bits to 16
        values = np.asarray(image)
        if image.format == "PNG" and not isinstance(name, str):
            bits = _significant_bits(name, values) or bits
        gray = _gray_of_8_bits(values, bits, is_scaled, name)
        if image.format == "TIFF" and image.tag_v2.get(_WHITE_TAG) == 0:  # Pillow inverts only images of 8 bits
            gray = 255 - gray
        return Image.fromarray(gray).convert("RGB")
    if "transparency" in image.info:  # for palettes, Pillow asks for RGBA first
        image = image.convert("RGBA")
    try:
        rgb = image.convert("RGB")
    except ValueError as error:
        raise DataError(f"the colours of {name} are not understood: {error}") from error
    # Pillow keeps the upper 8 bits of colours, or, of a PPM, rounds to 8.
    if bits == 16 and max(high for _, high in rgb.getextrema()) <= _DIMMEST >> 8:
        raise DataError(_DIM.format(name=name))
    return rgb


def _gray_of_8_bits(values: np.ndarray, bits: int, is_scaled: bool, name: str | os.PathLike) -> np.ndarray:
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        scale = 255.0
    elif bits < 16:
        scale = 255 / (2**bits - 1)
    elif bits == 16 and high >= _DIMMEST:
        scale = 255 / 65535
    elif bits == 16 and (high > 255 or (is_scaled and high > 0)):
        raise DataError(_DIM.format(name=name))
    elif low >= 0 and high <= 255 and (high > 100 or (values == values.round()).all()):  # float of 8 bits
        scale = 1.0
    else:
        kind = "float" if values.dtype.kind == "f" else "32-bit"
        raise DataError(
            f"{name} has {kind} values from {low:g} to {high:g}, and it is unknown which of them are black and white; "
            f"convert it to 8 bits (values from 0 to {'1, or to ' * (kind == 'float')}255 are read, too)"
        )
    return np.uint8(np.clip(values * scale, 0, 255).round())


def _significant_bits(path: str | os.PathLike, values: np.ndarray) -> int | None:
    """Return the bits that a gray PNG of 16 bits states (sBIT) if its values are not scaled to 16, or None."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    at = 8
    while at + 8 < len(head):
        length, kind = struct.unpack_from(">I4s", head, at)
        if kind == b"sBIT":
            bits = head[at + 8]
            # Scaled values are multiples, or repeat their upper bits in the lower ones, which are 0 if all are small.
            is_unscaled = 0 < bits < 16 and values.max() < 2**bits and (values & (2 ** (16 - bits) - 1)).any()
            return bits if is_unscaled else None
        if kind == b"IDAT":
            return None
        at += 12 + length
    return None


def write_mask(
    path: str | os.PathLike, mask: np.ndarray, palette: np.ndarray, text: Mapping[str, str] | None = None
) -> None:
    """Write an (H, W) label map as an index PNG with colours; the pixel values are the labels.

    Args:
        path: The PNG file; if it exists, it is replaced.
        mask: (H, W) labels 0 to 255; or uint16, for a gray PNG of 16 bits, which has no colours.
        palette: (256, 3) uint8 RGB.
        text: Text entries of the file, by keyword.

    Raises:
        UsageError: Another mask than one of uint16 has a label above 255 or below 0.
    """
    entries = PngInfo()
    for keyword, value in (text or {}).items():
        entries.add_text(keyword, value)
    if mask.dtype == np.uint16:
        _save(Image.fromarray(mask), path, pnginfo=entries)
        return
    if mask.size and not 0 <= mask.min() <= mask.max() <= 255:
        raise UsageError(f"{path}: labels must be 0 to 255, or uint16, got {mask.min()} to {mask.max()} {mask.dtype}")
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    _save(image, path, pnginfo=entries)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format of the suffix of `path`."""
    _save(Image.fromarray(image), path)


def _save(image: Image.Image, path: str | os.PathLike, **more: Any) -> None:
    options = _OPTIONS.get(Path(path).suffix.lower(), {}) | more
    write_whole(path, lambda temporary: image.save(temporary, **options))


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Return all image files below `folder`, in order of their paths, without hidden ones; links are followed."""
    return _in_order(path for path in _files_below(str(Path(folder))) if is_image(path))


def list_other_files(folder: str | os.PathLike) -> list[Path]:
    """Return what `list_images` does not: other files, broken links, and folders that may not be opened."""
    return _in_order(path for path in _files_below(str(Path(folder))) if not is_image(path))


def is_image(path: str | os.PathLike) -> bool:
    """Return whether a path is a file with the suffix of an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES and is_file(path)


def _in_order(paths: Iterable[str]) -> list[Path]:
    # As `Path` compares them, part by part, but without a million of its comparisons.
    return [Path(path) for path in sorted(paths, key=lambda path: os.path.normcase(path).split(os.sep))]


def _files_below(folder: str, inside: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield everything that is not hidden and not a folder that can be opened.

    Args:
        folder: The folder.
        inside: The real paths of the folders above. A link that leads back to one of these is not followed.
    """
    real = os.path.realpath(folder)
    if real in inside:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        fault = as_segkit_error(error)
        if fault or not inside:
            raise fault or DataError(f"cannot list the folder {folder}: {error.strerror}") from error
        yield folder
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # the target of a link cannot be found
            is_folder = False
        if is_folder:
            yield from _files_below(entry.path, inside | {real})
        else:
            yield entry.path
