"""Write files whole or not at all, even if the process is killed or the machine stops in between."""

import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from segkit.errors import MachineError, MissingFileError, SegkitError, UsageError, as_segkit_error

MAX_PIXELS = 178_956_970  # largest image that is opened by default; Pillow refuses larger ones, too

# Errors of file systems, such as network shares, that cannot force a folder to the disk.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
_CHUNK = 1 << 22  # bytes
_LONGEST_NAME = 255  # bytes, on all common file systems


def reduction(size: Sequence[int], at_least: int) -> int:
    """Return the largest of 1, 2, 4 and 8 by which both sides can be divided and stay at least `at_least`."""
    return max((k for k in (2, 4, 8) if min(size) // k >= at_least), default=1)


def write_whole(
    path: str | os.PathLike,
    content: str | bytes | memoryview | Callable[[Path], Any],
    *,
    durable: bool = False,
    previous: Path | None = None,
) -> None:
    """Write a file next to `path`, then replace `path` by it.

    Args:
        path: The file; its folder must exist.
        content: Text (written as UTF-8, undecodable names byte for byte), bytes, or a function that writes the
            file at the path that it is called with, which has the suffix of `path`.
        durable: Also force the file to the disk and read it back before it replaces `path`, so that a power failure
            leaves the old file or the new one. Takes bytes or text.
        previous: Path under which the replaced file is kept; a whole `path` exists at every moment.

    Raises:
        OSError: The file could not be written, or does not read back as it was written; `path` is unchanged.
    """
    path = Path(path)
    content = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        with file_named(path):
            if callable(content):
                content(temporary)
            else:
                with temporary.open("wb") as file:
                    file.write(content)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                if durable and _checksum(temporary) != zlib.crc32(content):
                    raise OSError(f"{path} does not read back as it was written; is the disk failing?")
            if previous is not None and path.exists():
                _keep(path, previous)
            os.replace(temporary, path)
            if durable:
                _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def file_named(path: str | os.PathLike) -> Iterator[None]:
    """Name `path` in an OSError of the block that writes it: for a full disk, the error names no or a temporary file.

    Raises:
        MissingFileError: The folder of `path` does not exist; somebody may have removed it since the command started.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        folder = Path(path).parent
        if error.errno == errno.ENOENT and not folder.is_dir():
            raise MissingFileError(f"cannot write {path}: there is no folder {folder} (any more)") from error
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def reserve(file: BinaryIO, size: int, folder: str | os.PathLike, what: str) -> None:
    """Make an open, empty file `size` bytes long, and reserve its space on the disk.

    Otherwise the system kills a process that writes to the memory-mapped file (bus error) as soon as the disk is full.

    Args:
        file: The file.
        size: Its new size in bytes.
        folder: Its folder, for the message.
        what: Its content in words, for the message.

    Raises:
        MachineError: The disk has less free space.
    """
    try:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS, Windows
            file.truncate(size)
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise MachineError(
            f"{what} need {size / 1e6:.0f} MB on the disk, but {folder} has {free / 1e6:.0f} MB left ({error.strerror})"
        ) from error


def write_csv(
    path: str | os.PathLike, header: Sequence[object], rows: Iterable[Sequence[object]], *, durable: bool = False
) -> None:
    """Write a table as CSV, whole or not at all.

    Names are written as they are, so that programs find the same names again. A spreadsheet takes a name that begins
    with `=`, `+`, `-` or `@` for a formula: import the columns of a table with such names as text.

    Args:
        path: The file.
        header: The names of the columns.
        rows: The values of each row.
        durable: See `write_whole`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_whole(path, text.getvalue(), durable=durable)


def write_records(path: str | os.PathLike, records: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
    """Write records with the same keys as CSV, see `write_csv`; without records no file is written."""
    if records:
        header = list(records[0])
        write_csv(path, header, ([record[name] for name in header] for record in records), durable=durable)


def write_json(path: str | os.PathLike, content: Any, *, indent: int | None = None, durable: bool = False) -> None:
    """Write plain values as JSON, whole or not at all. NaN is an error: JSON has none."""
    write_whole(path, json.dumps(content, indent=indent, allow_nan=False) + "\n", durable=durable)


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Raises:
        MissingFileError: The file does not exist.
        UsageError: The file cannot be read, or is not text in UTF-8.
        MachineError: The machine causes the error, see `segkit.errors.as_segkit_error`.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {path}") from None
    except OSError as error:
        raise as_segkit_error(error) or UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: it is not text in UTF-8") from error


def parse_json(content: bytes | str, path: str | os.PathLike, error: type[SegkitError] = UsageError) -> Any:
    """Return the content of a JSON file.

    Args:
        content: The JSON, in UTF-8 with or without a byte order mark.
        path: The file that it comes from, for messages.
        error: The class of the error to raise.

    Raises:
        SegkitError: `content` is no JSON, or Python cannot read it.
    """
    try:
        return json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content)
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise error(f"{path} is not valid JSON: {fault}") from fault
    except RecursionError as fault:
        raise error(f"{path} cannot be read: its lists and objects are nested too deeply") from fault
    except ValueError as fault:  # Python converts no text of more than 4300 digits to a number
        raise error(f"{path} cannot be read: it has a number with thousands of digits") from fault


def is_file(path: str | os.PathLike) -> bool:
    """Return whether a file exists, as `os.path.isfile`.

    Raises:
        MachineError: The machine cannot say whether it exists.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        fault = as_segkit_error(error) if isinstance(error, OSError) else None
        if fault is not None:
            raise fault from error
        return False


def check_readable(path: str | os.PathLike) -> None:
    """Open and close a file, before a library that calls every failure "no such file" reads it (safetensors, OpenCV).

    Raises:
        UsageError: The file cannot be opened.
        MachineError: The machine cannot open it, for example because too many files are open.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise as_segkit_error(error) or UsageError(f"cannot read {path}: {error.strerror}") from error


def with_home(path: str | os.PathLike) -> str:
    """Return a path whose leading `~` is replaced by the user's home folder.

    Raises:
        UsageError: This user has no home folder.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded == "~" or expanded.startswith("~/"):
        raise UsageError(f"this user has no home folder for the ~ in {path}; write the whole path")
    return expanded


def user_cache(name: str) -> Path | None:
    """Return the folder `segkit/NAME` in the user's cache folder, or None if the user has no home folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(cache or Path.home() / ".cache") / "segkit" / name
    except RuntimeError:  # no HOME, and the user is not in the list of users, as in some containers
        return None


class Fingerprint(NamedTuple):
    """Size and digest of a file, which identify its content.

    Attributes:
        bytes: Its size.
        sha256: The SHA-256 of its content, as `sha256sum` prints it.
    """

    bytes: int
    sha256: str


def fingerprint(path: str | os.PathLike) -> Fingerprint:
    """Return the size and the SHA-256 of a file.

    Raises:
        OSError: The file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Fingerprint(size, digest.hexdigest())


def make_folder(path: str | os.PathLike) -> None:
    """Make a folder, unless it exists.

    Raises:
        UsageError: The folder cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise as_segkit_error(error) or UsageError(f"cannot make the folder {path}: {error.strerror}") from error


def free_name(path: Path) -> Path:
    """Return the first free name to rename a file to: best.old1.safetensors, best.old2.safetensors ..."""
    names = (path.with_name(f"{path.stem}.old{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove the temporary files that killed writers of the files `names` left in `folder`, and nothing else."""
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*"):
            if is_leftover(path, name):
                path.unlink(missing_ok=True)


def is_leftover(path: Path, name: str = "") -> bool:
    """Return whether a path is a temporary file that a killed `write_whole` of `name` has left; by default of any file.

    No user would choose such a name: the name of the file, two numbers, "tmp", and the suffix of the file.
    """
    of_file = rf"\.{re.escape(name)}" if name else r"(\..*)?"
    return bool(re.fullmatch(rf"{of_file}\.\d+(\.\d+)?\.tmp(\..*)?", path.name, re.DOTALL)) and path.is_file()


def _temporary(path: Path) -> Path:
    """Return a hidden name next to `path` that no other process or thread writes to, on this machine or another."""
    unique = f"{os.getpid()}.{int.from_bytes(os.urandom(8), 'big')}.tmp{path.suffix}"
    name = f".{path.name}.{unique}"
    return path.with_name(name if len(os.fsencode(name)) <= _LONGEST_NAME else f".{unique}")


def _keep(path: Path, previous: Path) -> None:
    # A second name (hard link) for the old file costs nothing, and `path` exists at every moment.
    temporary = _temporary(previous)
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except (OSError, NotImplementedError):  # a file system without links may raise either
            shutil.copyfile(path, temporary)
        os.replace(temporary, previous)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk: a power failure could lose it even if the content of the file is written."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)
