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
        if self.folder is None:
            return
        with suppress(OSError):  # the folder is read-only, or another process was faster
            if self.folder.is_dir():
                os.utime(self.folder)  # marks it as used
                return
            self.folder.mkdir(parents=True)
            # The masks have changed, so the folder of the old ones may never be used again.
            for other in self.folder.parent.iterdir():
                if _DIGEST.fullmatch(other.name) and time.time() - other.stat().st_mtime > UNUSED:
                    shutil.rmtree(other, ignore_errors=True)

    def get(self, index: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the mask (H, W) uint8 of image `index`; calls `make()` if the cache does not have it."""
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


def default_folder() -> Path:
    """Return `segkit/masks` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segkit" / "masks"
