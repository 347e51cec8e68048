"""ONNX files of models in the user's cache: each model is exported once."""

import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segkit._version import __version__
from segkit.errors import UsageError
from segkit.files import is_leftover, user_cache
from segkit.models.export import export_onnx
from segkit.models.onnx_file import read_metadata
from segkit.models.segmenter import Segmenter

EXPORTER = 1  # raise it if `export_onnx` writes another file of the same model
# A file depends on the code that builds and translates the model, too.
_PACKAGES = ("torch", "timm", "onnx", "onnxscript")
_UNUSED = 60 * 24 * 3600  # seconds after which an unused file is removed
_KILLED = 3600  # seconds after which an unfinished file has no writer any more
_TAG = "CACHEDIR.TAG"  # marks a folder of a cache; backup programs know the name and the signature
_TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# ONNX files that segkit has made, and makes again if needed.\n"
)


def cached_onnx(
    load: Callable[[], Segmenter], digest: str, announce: Callable[[], object] = lambda: None
) -> Path | None:
    """Return the ONNX file of a model in the user's cache, which is `segkit/onnx` there; export the model if it is new.

    Files are written whole or not at all, and several processes may use the cache. Files that nobody has used for 60
    days are removed.

    Args:
        load: Returns the model; only called if the file does not exist, or is damaged.
        digest: A digest of everything that the model was loaded from.
        announce: Called before the export, which takes some ten seconds.

    Returns:
        The file, or None if this user has no cache folder that can be written.

    Raises:
        UsageError: The model cannot be exported, see `export_onnx`.
        MissingPackageError: A package for ONNX is not installed.
    """
    folder = user_cache("onnx")
    if folder is None or not _prepare(folder):
        return None
    made_by = [f"segkit {__version__}", f"exporter {EXPORTER}", *(f"{name} {_version(name)}" for name in _PACKAGES)]
    key = hashlib.sha256("\n".join([*made_by, digest]).encode()).hexdigest()[:32]
    file = folder / f"{key}.onnx"
    if _is_whole(file):
        with suppress(OSError):  # a cache that another user fills
            file.touch()  # marks it as used
        return file
    announce()
    export_onnx(load(), file)
    return file


def _prepare(folder: Path) -> bool:
    """Make the folder, remove old files, and return whether it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not (folder / _TAG).exists():
            (folder / _TAG).write_text(_TAG_TEXT, encoding="utf-8")
        for file in folder.iterdir():
            is_own = re.fullmatch(r"[0-9a-f]{32}\.onnx", file.name) is not None
            limit = _UNUSED if is_own else _KILLED
            if (is_own or is_leftover(file)) and time.time() - file.stat().st_mtime > limit:
                file.unlink(missing_ok=True)
    except FileNotFoundError:  # another process was faster to remove a file
        return folder.is_dir()
    except OSError:
        return False
    return True


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        return "segkit" in read_metadata(file)
    except UsageError:  # damaged
        return False


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
