"""MaskCache: label maps that are rasterised once."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]
UNUSED = 60 * 24 * 3600  # seconds
_DIGEST = re.compile("[0-9a-f]{16}")
MAKER = "1"  # to be raised when the same annotations come to give other masks


class MaskCache:
    """Keeps label maps as PNG, in a folder that several processes share, or in memory.

    A file is written beside its place and then moved there, so that nobody reads half of it. What cannot
    be read is made anew; where the folder cannot be written, the masks are made each time. Masks of other
    keys that nobody has opened for 60 days are removed.

    Args:
        folder: Where the files lie, below a folder named after `key`; None for memory.
        key: What the masks follow from, such as the digest of their JSON file and the settings: another
            key never sees these masks.
    """

    def __init__(self, folder: str | os.PathLike | None, key: str = "") -> None:
        digest = hashlib.sha256(f"{MAKER}\n{key}".encode()).hexdigest()[:16]
        self.folder = None if folder is None else Path(folder) / digest
        self._kept: dict[int, np.ndarray] = {}
        if self.folder is not None:
            _open_folder(self.folder)

    def get(self, index: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The mask (H, W) uint8 of image `index`; `make()` gives it where it is not there yet."""
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
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(png.tobytes())
            os.replace(temporary, path)
        except OSError:  # full or read-only: a cache may fail, the training may not
            temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def _open_folder(folder: Path) -> None:
    """Notes that the folder is in use; where it is new, removes its neighbours that have long not been."""
    try:
        if folder.is_dir():
            os.utime(folder)
            return
        folder.mkdir(parents=True)
        for other in folder.parent.iterdir():
            if _DIGEST.fullmatch(other.name) and time.time() - other.stat().st_mtime > UNUSED:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:  # read-only, or another process was faster: a cache may fail, the training may not
        return


def default_folder() -> Path:
    """`segkit/masks` below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segkit" / "masks"


def _read(path: Path) -> np.ndarray | None:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    return content if len(content) else None
