"""MaskName: where the mask of an image is, if it is not called like the image."""

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from segkit.errors import DataError, UsageError

_FIELD = re.compile(r"\{([^{}]*)\}")
_KNOWN = re.compile(r"folder|name|stem(-(?P<end>[^/]+))?")


class MaskName:
    """The path of a mask, made from the path of its image.

    Args:
        pattern: A path with fields: `{stem}` is the file name of the image without its suffix, `{stem-END}` the same
            without END at its end (`{stem-_sat}_mask.png` is 7_mask.png for 7_sat.jpg), `{name}` the file name with its
            suffix, and `{folder}` its folder below the folder of the images. A pattern without folders means a file in
            the folder of the same name; with folders, it starts from the folder of the masks. Capitals of the file name
            may differ.

    Raises:
        UsageError: There is no such field, or the pattern has the same path for all images.
    """

    def __init__(self, pattern: str) -> None:
        fields = _FIELD.findall(pattern)
        for field in fields:
            if not _KNOWN.fullmatch(field):
                raise UsageError(
                    f"`mask_name`: there is no field {{{field}}}; the fields are {{stem}}, {{stem-END}}, {{name}} and "
                    "{folder}, such as {stem}_mask.png"
                )
        if not any(field != "folder" for field in fields):
            raise UsageError(f"`mask_name` {pattern} names one file for all images; it needs {{stem}} or {{name}}")
        pattern = pattern.replace("\\", "/")
        self.pattern = pattern if "/" in pattern else "{folder}/" + pattern
        ends = [_KNOWN.fullmatch(field)["end"] for field in fields]
        self._end = next((end for end in ends if end), "")
        parts = re.split(r"(\{[^{}]*\}/?)", self.pattern)
        self._regex = re.compile("".join(map(_as_regex, parts)), re.IGNORECASE)

    def fits(self, path: str) -> bool:
        """Return whether a path, with slashes and relative to the folder of the masks, can be a mask."""
        return self._regex.fullmatch(unicodedata.normalize("NFC", path)) is not None

    def expected(self, image: str, masks: Path) -> str:
        """Return where the mask of an image should be.

        Args:
            image: Path of the image below the folder of the images, with slashes.
            masks: Folder of the masks.
        """
        path = self._path(image, masks)
        return str(path) if path is not None else f"no place, because its name does not end in {self._end!r}"

    def find(self, image: str, masks: Path) -> Path | None:
        """Return the mask of an image; None if there is none.

        Args:
            image: Path of the image below the folder of the images, with slashes.
            masks: Folder of the masks.

        Raises:
            DataError: Several files differ from the expected name only in capitals.
        """
        path = self._path(image, masks)
        if path is None or path.is_file():
            return path
        if not path.parent.is_dir():
            return None
        wanted = _spelt(path.name)
        found = [Path(entry.path) for entry in os.scandir(path.parent) if _spelt(entry.name) == wanted]
        if len(found) > 1:
            raise DataError(f"{found[0]} and {found[1]} have the same name, so it is not clear which one is meant")
        return found[0] if found else None

    def _path(self, image: str, masks: Path) -> Path | None:
        path = PurePosixPath(image)
        if not path.stem.endswith(self._end):
            return None
        values = {"folder": path.parent.as_posix(), "name": path.name, "stem": path.stem}

        def value(match: re.Match) -> str:
            field = match[1]
            return values[field] if field in values else path.stem.removesuffix(self._end)

        return Path(os.path.normpath(masks / _FIELD.sub(value, self.pattern)))


def _as_regex(part: str) -> str:
    if part.startswith("{folder}"):
        return "(?:.*/)?" if part.endswith("/") else ".*"
    if part.startswith("{"):
        return "[^/]+" + part[part.index("}") + 1 :]
    return re.escape(unicodedata.normalize("NFC", part))


def _spelt(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
