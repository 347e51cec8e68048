"""MaskCache: label maps that are drawn only once."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from segkit.files import write_whole

FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]
UNUSED = 60 * 24 * 3600  # seconds after which unused masks are removed
_DIGEST = re.compile("[0-9a-f]{16}")
MAKER = "1"  # raise it if the same annotations become other masks


class MaskCache:
    """Keeps label maps as PNG, in a folder that several processes may share, or in memory.

    Files are written whole or not at all. A file that cannot be read is made again; if the folder cannot be written,
    the masks are made each time. Masks of other keys that nobody has opened for 60 days are removed.

    Args:
        folder: The files are below it, in a folder named after `key`. None to keep them in memory.
        key: What the masks depend on, such as the digest of their JSON file and the settings. Masks of another key are
            never used.
    """

    def __init__(self, folder: str | os.PathLike | None, key: str = "") -> None:
        digest = hashlib.sha256(f"{MAKER}\n{key}".encode()).hexdigest()[:16]
        self.folder = None if folder is None else Path(folder) / digest
        self._kept: dict[int, np.ndarray] = {}
        if self.folder is not None:
            _open_folder(self.folder)

    def get(self, index: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the mask (H, W) uint8 of image `index`; calls `make()` if the cache does not have it."""
        png = self._kept.get(index) if self.folder is None else _read(self._path(index))
        mask = None if png is None else cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
        if mask is not None and mask.ndim == 2:
            return mask
        mask = make()
        _, png = cv2.imencode(".png", mask, FAST)
        if self.folder is None:
            self._kept[index] = png
        else:
            self._write(index, png)
        return mask

    def _path(self, index: int) -> Path:
        return self.folder / f"{index // 1000}" / f"{index}.png"

    def _write(self, index: int, png: np.ndarray) -> None:
        path = self._path(index)
        # On a full or read-only disk the cache may fail, but not the training.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, png.tobytes())


def _open_folder(folder: Path) -> None:
    """Mark the folder as used; if it is new, remove its neighbours that have not been used for a long time."""
    with suppress(OSError):  # read-only, or another process was faster
        if folder.is_dir():
            os.utime(folder)
            return
        folder.mkdir(parents=True)
        for other in folder.parent.iterdir():
            if _DIGEST.fullmatch(other.name) and time.time() - other.stat().st_mtime > UNUSED:
                shutil.rmtree(other, ignore_errors=True)


def default_folder() -> Path:
    """Return `segkit/masks` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segkit" / "masks"


def _read(path: Path) -> np.ndarray | None:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    return content if len(content) else None
