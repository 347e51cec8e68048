"""Files that are written whole or not at all, even if the process is killed or the machine stops on the way."""

import errno
import os
import shutil
import zlib
from pathlib import Path

# What file systems say that force no folder to the disk, such as shares of other machines.
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
CHUNK = 1 << 22


def write_atomically(path: Path, content: bytes | memoryview, *, previous: Path | None = None) -> None:
    """Writes beside `path`, forces it to the disk, reads it back, and only then puts it in the place of `path`.

    Args:
        path: The file.
        content: What it is to hold.
        previous: Where the file that is there now is kept; there is a whole `path` at every moment.

    Raises:
        OSError: it could not be written, or does not read back as it was written; `path` is as it was.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if _checksum(temporary) != zlib.crc32(content):
            raise OSError(f"{path} does not read back as it was written; is the disk failing?")
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Removes what writers of these files have left that were killed."""
    for name in names:
        for leftover in folder.glob(f".{name}.*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _keep(path: Path, previous: Path) -> None:
    # A second name for the old file costs nothing, and leaves no moment without `path`.
    temporary = _temporary(previous)
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except (OSError, NotImplementedError):  # a file system without links, each of which says so in its own way
            shutil.copyfile(path, temporary)
        os.replace(temporary, previous)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _sync_folder(folder: Path) -> None:
    """Without this the new name may be lost with the power, though the file's content is on the disk."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(handle)
