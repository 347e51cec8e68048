"""Pictures of label maps: palette, overlay, legend, grid."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from segkit.errors import UsageError
from segkit.labels import foreground_of
from segkit.text import SIZE, draw_text, drawable_names, shorten, text_width

_IGNORED = (255, 255, 255)
# Each one is the colour (in steps of 17; not too dark, bright or gray) that is farthest from black, white and the
# colours before it: it has the largest minimum CIEDE2000 distance to them, for normal eyes, with protanopia and with
# deuteranopia.
_COLOURS = np.frombuffer(
    bytes.fromhex(
        "dd0066 1199ff ffbb00 005500 1111ff 00ccaa cc7722 88ffaa 880077 cc66aa ff7788 00ddff "
        "115544 337766 4466ee aa4499 66cccc 007744 ff9966 bbeecc bb7788 aa1122 996600 6611bb"
    ),
    dtype=np.uint8,
).reshape(-1, 3)
_TITLE_ROW = 18  # pixels
_CAPTION, _CAPTION_ROW = 11, 14  # pixels of the font and of a row
_NARROWEST = 96  # pixels of the width of a picture with a legend
_OF_A_SIDE = 1 / 64  # font size of a legend, as share of the longest side of a large picture


def create_palette(num_classes: int, background: int | None = 0) -> np.ndarray:
    """Return a colour for each label, (256, 3) uint8 RGB: black for background, white for other labels.

    The colours of the first eleven classes besides background are at least 30 apart in CIELAB, the colours of the first
    24 at least 13; for people with protanopia or deuteranopia at least 17 and 10. A label has the same colour in a
    palette of any size. With more than 24 classes, some of the further colours are similar.

    Args:
        num_classes: Number of classes, background included. With more than 256, the palette has more rows.
        background: The label of background; None if no class is background.
    """
    palette = np.full((max(256, num_classes), 3), _IGNORED, dtype=np.uint8)
    foreground = [label for label in range(num_classes) if label != background]
    for number, label in enumerate(foreground):
        palette[label] = _COLOURS[number] if number < len(_COLOURS) else _further_colour(number)
    if background is not None:
        palette[background] = 0
    return palette


def _further_colour(number: int) -> tuple[int, ...]:
    """Return a colour whose hue is a golden angle away from the one before, in one of nine shades."""
    saturation, value = (0.9, 0.65, 0.45)[number % 3], (1.0, 0.8, 0.6)[number // 3 % 3]
    return tuple(round(255 * x) for x in colorsys.hsv_to_rgb(number * 0.618034 % 1, saturation, value))


def overlay(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray, opacity: float = 0.5, *, background: int | None = 0
) -> np.ndarray:
    """Return the image with each object tinted and outlined in the colour of its class; background is unchanged.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) labels.
        palette: (256, 3) uint8, see `create_palette`.
        opacity: Opacity of the colours, from 0 (only outlines) to 1 (flat colours).
        background: The label that is not tinted; None to tint all.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UsageError: Image and mask have different sizes.
    """
    if image.shape[:2] != mask.shape:
        raise UsageError(f"`mask` must have the size of the image, {image.shape[:2]}, got {mask.shape}")
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
    labels = mask if mask.dtype == np.uint8 else mask.astype(np.uint16)
    is_small = labels.dtype == np.uint8 and len(palette) == 256
    colours = cv2.LUT(cv2.merge([labels] * 3), palette[None]) if is_small else palette[mask]
    tinted = np.ones(mask.shape, dtype=bool) if background is None else mask != background
    result = image.copy()
    cv2.copyTo(cv2.addWeighted(image, 1 - opacity, colours, opacity, 0), tinted.view(np.uint8), result)
    # The outline of an object: its pixels that touch a pixel of another label.
    square = np.ones((3, 3), dtype=np.uint8)
    outline = (cv2.dilate(labels, square) != cv2.erode(labels, square)) & tinted
    bare = image[outline]
    result[outline] = np.round(bare + max(opacity, 0.9) * (colours[outline].astype(np.float64) - bare))
    return result


def legend(
    class_names: Sequence[str],
    labels: Sequence[int],
    palette: np.ndarray,
    width: int,
    *,
    size: int = SIZE,
    most_rows: int | None = None,
) -> np.ndarray:
    """Return a white strip of `width` pixels with the colour and the name of each label, in as many rows as needed.

    Args:
        class_names: Names of all classes in index order, in any script; see `segkit.text`.
        labels: The labels to show.
        palette: (256, 3) uint8, see `create_palette`.
        width: Width of the strip, in pixels.
        size: Font size, in pixels.
        most_rows: Largest number of rows. The last labels may not fit, and "+3" is their number.

    Returns:
        (h, width, 3) uint8 RGB.
    """
    gap, row_height = round(0.3 * size), round(1.4 * size)
    indent = size + 2 * gap  # of a name, behind its colour
    names = drawable_names(class_names)
    room = text_width(f"+{len(labels)}", size) + gap
    widest = width - indent - 2 * gap - (room if most_rows == 1 < len(labels) else 0)
    shown = [(label, shorten(names[label], widest, size)) for label in labels]
    places: list[tuple[int, int]] = []  # row and x of each entry
    row, x = 0, gap
    for _, name in shown:
        advance = indent + text_width(name, size) + 2 * gap
        if x > gap and x + advance > width:
            if row + 1 == most_rows:
                break
            row, x = row + 1, gap
        places.append((row, x))
        x += advance
    while 1 < len(places) < len(shown) and x + room > width:
        row, x = places.pop()
    strip = np.full(((row + 1) * row_height + gap, width, 3), 255, dtype=np.uint8)
    for (label, name), (line, left) in zip(shown, places, strict=False):
        top = gap + line * row_height
        cv2.rectangle(strip, (left, top), (left + size, top + size - 2), palette[label].tolist(), cv2.FILLED)
        cv2.rectangle(strip, (left, top), (left + size, top + size - 2), (90, 90, 90), max(1, size // 20))
        draw_text(strip, name, (left + indent, top + size - 2), size=size)
    if len(places) < len(shown):
        draw_text(strip, f"+{len(shown) - len(places)}", (x, gap + row * row_height + size - 2), size=size)
    return strip


def with_legend(picture: np.ndarray, mask: np.ndarray, class_names: Sequence[str], palette: np.ndarray) -> np.ndarray:
    """Return the picture with a legend of the classes of `mask` below it, the largest first, without background.

    The letters grow with the picture. The legend is at most half as high as the picture, but has at least one row; a
    picture of less than 96 pixels in width has none, because no name would fit.

    Args:
        picture: (H, W, 3) uint8 RGB.
        mask: (H, W) labels.
        class_names: Names of all classes in index order.
        palette: (256, 3) uint8, see `create_palette`.
    """
    height, width = picture.shape[:2]
    pixels = np.bincount(mask.ravel(), minlength=len(class_names)).tolist()
    labels = [label for label in foreground_of(class_names) if pixels[label]]
    labels.sort(key=lambda label: -pixels[label])
    if not labels or width < _NARROWEST:
        return picture
    size = min(max(SIZE, round(max(height, width) * _OF_A_SIDE)), max(SIZE, width // 8))
    most_rows = max(1, height // 2 // round(1.4 * size))
    return np.concatenate([picture, legend(class_names, labels, palette, width, size=size, most_rows=most_rows)])


def grid(
    pictures: Sequence[np.ndarray],
    columns: int,
    *,
    cell: int = 256,
    gap: int = 4,
    titles: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Return one picture that shows pictures (H, W, 3) uint8 of any size in rows and columns.

    Args:
        pictures: The pictures, row by row.
        columns: Number of pictures in a row.
        cell: Longest side of each picture, in pixels; the pictures are scaled to it.
        gap: White space between pictures, in pixels.
        titles: A title above each column.
        captions: Lines of text below each picture; a line that is too long is shortened in its middle.
    """
    fitted = [_resize(picture, cell) for picture in pictures]
    if captions:
        fitted = [_with_caption(picture, text, cell) for picture, text in zip(fitted, captions, strict=True)]
    width = columns * (cell + gap) + gap
    strips = []
    if titles:
        strip = np.full((_TITLE_ROW, width, 3), 255, dtype=np.uint8)
        for column, title in enumerate(titles):
            draw_text(strip, shorten(title, cell), (gap + column * (cell + gap), 13))
        strips.append(strip)
    strips.append(np.full((gap, width, 3), 255, dtype=np.uint8))
    for first in range(0, len(fitted), columns):
        row = fitted[first : first + columns]
        height = max(picture.shape[0] for picture in row)
        strip = np.full((height + gap, width, 3), 255, dtype=np.uint8)
        for column, picture in enumerate(row):  # each in the middle of its cell
            top = (height - picture.shape[0]) // 2
            left = gap + column * (cell + gap) + (cell - picture.shape[1]) // 2
            strip[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        strips.append(strip)
    return np.concatenate(strips)


def shrink(picture: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W, 3) or label map (H, W) scaled down to at most `side` pixels on its longest side."""
    if max(picture.shape[:2]) <= side:
        return picture
    return _resize(picture, side)


def _with_caption(picture: np.ndarray, text: str, cell: int) -> np.ndarray:
    lines = text.split("\n")
    canvas = np.full((picture.shape[0] + _CAPTION_ROW * len(lines) + 4, cell, 3), 255, dtype=np.uint8)
    left = (cell - picture.shape[1]) // 2
    canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
    for row, line in enumerate(lines):
        place = (0, picture.shape[0] + 12 + _CAPTION_ROW * row)
        draw_text(canvas, shorten(line, cell, _CAPTION), place, size=_CAPTION)
    return canvas


def _resize(picture: np.ndarray, side: int) -> np.ndarray:
    """Return an image or label map scaled to `side` pixels on its longest side."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if picture.ndim == 2:
        return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
