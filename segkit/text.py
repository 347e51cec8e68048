"""Text in pictures, in any script: fonts with the characters, and the drawing."""

import importlib.util
import logging
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 13  # pixels of an em
INK = (20, 20, 20)
LONGEST = 500  # characters of a text that are drawn
REMEMBERED = 1000  # texts: the legends of many images have the same names
# The beginnings of the names of font files with Chinese, Japanese and Korean characters, the most complete first.
CJK_FONTS = (
    *("notosanscjk", "notosanskr", "sourcehansans", "nanumgothic", "nanumbarungothic", "malgun", "applesdgothicneo"),
    *("applegothic", "arialunicode", "notosanssc", "notosansjp", "wqy-microhei", "wqy-zenhei", "wenquanyi", "hiragino"),
    *("pingfang", "msyh", "meiryo", "yugoth", "simhei", "msgothic", "gulim", "baekmuk", "undotum", "droidsansfallback"),
)
# A font of last resort has a box with the number for every character; fonts of emoji have only one size.
UNFIT = ("lastresort", "adobeblank", "notocoloremoji", "applecoloremoji")
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
_NO_CHARACTER = "\uffff"  # every font draws it as a missing character

_log = logging.getLogger(__name__)


def draw_text(
    picture: np.ndarray,
    text: str,
    place: tuple[int, int],
    *,
    size: int = SIZE,
    colour: tuple[int, int, int] = INK,
) -> None:
    """Draw one line of text into a picture; what lies outside the picture is not drawn.

    Args:
        picture: (H, W, 3) uint8 RGB, is changed.
        text: The text, in any script. A character that no font has becomes a question mark.
        place: x and y of the left end of its baseline, in pixels.
        size: Size of the font, in pixels.
        colour: Red, green, blue.
    """
    drawn = _draw(text, size)
    left, top = place[0] - size, place[1] - 2 * size
    rows = slice(max(0, top), max(0, top + drawn.shape[0]))
    columns = slice(max(0, left), max(0, left + drawn.shape[1]))
    window = picture[rows, columns]
    cut = drawn[rows.start - top :, columns.start - left :][: window.shape[0], : window.shape[1]]
    opacity = cut[..., None].astype(np.float32) / 255
    window[:] = np.round(window + opacity * (np.asarray(colour, dtype=np.float32) - window))


@lru_cache(REMEMBERED)
def _draw(text: str, size: int) -> np.ndarray:
    """Return the opacity of a line of text, uint8; its baseline begins at x = size and y = 2 * size."""
    parts = _parts(text, size)
    width = sum(advance for _, _, advance in parts)
    # There is room for marks above and below the letters, and for letters that begin left of their place.
    canvas = Image.new("L", (width + 2 * size, 3 * size))
    x = size
    for part, font, advance in parts:
        ImageDraw.Draw(canvas).text((x, 2 * size), part, fill=255, font=font, anchor="ls")
        x += advance
    return np.array(canvas)


def text_width(text: str, size: int = SIZE) -> int:
    """Return the width of a line of text, in pixels."""
    return sum(advance for _, _, advance in _parts(text, size))


def shorten(text: str, width: int, size: int = SIZE) -> str:
    """Return the text, or its start and its end if it is wider than `width` pixels."""
    shown, kept = text, min(len(text), LONGEST)
    while kept and text_width(shown, size) > width:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}..{text[len(text) - kept // 2 :]}"
    return shown


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """Return the names of classes as pictures show them: `label 3` for a name that no font can draw."""
    return [f"label {label}" if missing_in(name) else name for label, name in enumerate(class_names)]


def missing_in(text: str) -> set[str]:
    """Return the characters of a text that no font has, and warn once in a process if there are any."""
    missing = _missing_in(text)
    if missing:
        _warn(text)
    return set(missing)


@lru_cache(REMEMBERED)
def _missing_in(text: str) -> frozenset[str]:
    return frozenset(character for character in set(_one_line(text)) if _file_for(character) is None)


def font_files(texts: Iterable[str]) -> list[Path]:
    """Return the files of the fonts that the texts need, without the font that matplotlib ships."""
    found = (_file_for(character) for character in sorted(set("".join(map(_one_line, texts)))))
    return [file for file in dict.fromkeys(found) if file is not None and file != own_font()]


@cache
def own_font() -> Path | None:
    """Return the file of DejaVu Sans that comes with matplotlib; None if it is not installed.

    matplotlib is not imported: that takes long, and a broken installation raises errors of all kinds.
    """
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        file = Path(folder, "mpl-data/fonts/ttf/DejaVuSans.ttf")
        if file.is_file():
            return file
    return None


def font_folders() -> list[Path]:
    """Return the folders in which this system has its fonts, the user's own folder first."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", str(home / "AppData/Local"))
        return [Path(local, "Microsoft/Windows/Fonts"), Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")]
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    data = [os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")]
    data += (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    return [*(Path(folder, "fonts") for folder in dict.fromkeys([*data, "/usr/share"]) if folder), home / ".fonts"]


@cache
def system_fonts() -> list[Path]:
    """Return the font files of this system, the files with Chinese, Japanese and Korean characters first."""
    found = [
        Path(folder, name)
        for top in font_folders()
        for folder, _, names in os.walk(top)
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES)
    ]

    def rank(file: Path) -> tuple[int, bool, int, str]:
        name = _plain(file)
        known = (place for place, start in enumerate(CJK_FONTS) if name.startswith(_plain(Path(start))))
        return next(known, len(CJK_FONTS)), "regular" not in name, len(name), name  # the short name is not bold

    return sorted((file for file in found if not _plain(file).startswith(UNFIT)), key=rank)


def _plain(file: Path) -> str:
    return file.stem.lower().replace(" ", "").replace("-", "").replace("_", "")


@cache
def _file_for(character: str) -> Path | None:
    """Return the first font file with a character; None if there is none.

    Without matplotlib, the font in Pillow has the letters of English.
    """
    files = [] if own_font() is None else [own_font()]
    if character.isascii() or (files and _has(files[0], character)):
        return files[0] if files else Path()
    return next((file for file in system_fonts() if _has(file, character)), None)


@cache
def _has(file: Path, character: str) -> bool:
    """Return whether a font draws a character in another way than a missing one."""
    font = _font(file, 24)
    if font is None:
        return False
    drawn, missing = (font.getmask(text) for text in (character, _NO_CHARACTER))
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


@cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont | None:
    """Return a font; None if the file is damaged or has no outlines."""
    try:
        return ImageFont.load_default(size) if file == Path() else ImageFont.truetype(str(file), size)
    except (OSError, ValueError):
        return None


@lru_cache(REMEMBERED)
def _parts(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont, int]]:
    """Return the parts of a line that one font draws, each with its font and its width."""
    parts = []
    for part, file in _runs(_one_line(text)):
        font = _font(file, size)
        parts.append((part, font, round(font.getlength(part))))
    return parts


def _runs(text: str) -> Iterator[tuple[str, Path]]:
    run, of_run = "", None
    for character in text:
        file = _file_for(character)
        if file is None:
            missing_in(character)
            character, file = "?", _file_for("?")
        if unicodedata.combining(character) or unicodedata.category(character) in ("Zs", "Cf", "Mn", "Mc"):
            file = of_run or file  # marks and spaces belong to the letter before them
        if run and file != of_run:
            yield run, of_run
            run = ""
        run, of_run = run + character, file
    if run:
        yield run, of_run


def _one_line(text: str) -> str:
    """Return a text without line breaks, control characters and characters that are not UTF-8, composed (NFC).

    macOS writes the Hangul of file names as single letters, which only some fonts put together.
    """
    whole = unicodedata.normalize("NFC", text[: 2 * LONGEST].encode("utf-8", "replace").decode("utf-8"))
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in whole)


def _warn(text: str) -> None:
    if not _warned:
        _warned.append(text)
        _log.warning(
            "no font has all characters of %r; pictures show such a class by its number, such as 'label 1'. Install a "
            "font like Noto Sans CJK (Debian and Ubuntu: apt install fonts-noto-cjk), or copy its file to %s",
            text[:40],
            font_folders()[0],
        )


_warned: list[str] = []
