"""MaskCache: label maps that are drawn only once."""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from segkit.files import is_leftover, user_cache, write_whole

_log = logging.getLogger(__name__)
FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]
UNUSED = 60 * 24 * 3600  # seconds after which unused masks are removed
KILLED = 3600  # seconds after which an unfinished file has no writer any more
TAG = "CACHEDIR.TAG"  # marks a folder of the cache; backup programs know the name and the signature
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Masks that segkit has drawn, and draws again if needed.\n"
MAKER = "1"  # raise it if the same annotations become other masks


class MaskCache:
    """Keep label maps as PNG, in a folder that several processes may share, or in memory.

    Files are written whole or not at all. A file that cannot be read is made again; if the folder cannot be written,
    the masks are made each time. Masks of other keys that were not opened for 60 days are removed, and so are files
    that a killed process has left half-written. Nothing else is removed: a folder without the tag of the cache is
    never touched.

    Args:
        folder: The files are below it, in a folder named after `key`. None to keep them in memory.
        key: What the masks depend on, such as the digest of their JSON file and the settings. Masks of another key are
            never used.
    """

    def __init__(self, folder: str | os.PathLike | None, key: str = "") -> None:
        digest = hashlib.sha256(f"{MAKER}\n{key}".encode()).hexdigest()[:16]
        self.folder = None if folder is None else Path(folder) / digest
        self._kept: dict[int, np.ndarray] = {}
        if self.folder is None:
            return
        with suppress(OSError):  # the folder is read-only, or another process was faster
            is_new = not self.folder.is_dir()
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)  # marks it as used
            if not _has_tag(self.folder):
                write_whole(self.folder / TAG, TAG_TEXT)
            _remove(_own_files(self.folder, only_unfinished=True))
            # The masks have changed, so the folder of the old ones may never be used again.
            for other in self.folder.parent.iterdir() if is_new else ():
                if _has_tag(other) and time.time() - other.stat().st_mtime > UNUSED:
                    _remove([*_own_files(other), other / TAG])
                    for empty in (*_parts(other), other):
                        with suppress(OSError):  # it has a file that the cache did not write
                            empty.rmdir()

    def get(self, index: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the mask (H, W) uint8 of image `index`; call `make()` if the cache does not have it."""
        path = None if self.folder is None else self.folder / f"{index // 1000}" / f"{index}.png"
        png = self._kept.get(index)
        if path is not None:
            with suppress(OSError):
                png = np.fromfile(path, dtype=np.uint8)
        mask = cv2.imdecode(png, cv2.IMREAD_UNCHANGED) if png is not None and len(png) else None
        if mask is not None and mask.ndim == 2:
            return mask
        mask = make()
        _, png = cv2.imencode(".png", mask, FAST)
        if path is None:
            self._kept[index] = png
        else:
            # On a full or read-only disk the cache may fail, but not the training.
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, png.tobytes())
        return mask


def _has_tag(folder: Path) -> bool:
    """Return whether a folder was made by the cache."""
    try:
        return not folder.is_symlink() and (folder / TAG).read_text(encoding="utf-8") == TAG_TEXT
    except (OSError, UnicodeDecodeError):
        return False


def _parts(folder: Path) -> list[Path]:
    """Return the folders of a thousand masks each in a folder of the cache."""
    return [part for part in folder.iterdir() if re.fullmatch("[0-9]+", part.name) and not part.is_symlink()]


def _own_files(folder: Path, *, only_unfinished: bool = False) -> Iterator[Path]:
    """Yield the masks in a folder of the cache, and the files that killed processes have left half-written."""
    for part in _parts(folder):
        for path in part.iterdir():
            if is_leftover(path):
                if time.time() - path.stat().st_mtime > KILLED:
                    yield path
            elif not only_unfinished and re.fullmatch(r"[0-9]+\.png", path.name):
                yield path


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def default_folder() -> Path | None:
    """Return `segkit/masks` in the user's cache folder, or None if the user has no home folder."""
    folder = user_cache("masks")
    if folder is None:
        _log.info("this user has no home folder: masks are drawn each time; `mask_cache=DIR` keeps them in a folder")
    return folder
