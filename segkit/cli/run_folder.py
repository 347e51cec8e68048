"""Run folders: where a command writes when it is not told."""

import tempfile
from itertools import count
from pathlib import Path

RUNS = Path("runs")
DEMO = RUNS / "demo-data"


def create_run_folder(out: Path | None, prefix: str, *, may_have_begun: bool = False) -> Path:
    """Makes `out`, or the first free one of runs/PREFIX1, runs/PREFIX2 ...

    Args:
        out: The folder.
        prefix: Of the names.
        may_have_begun: `out` may hold the settings of a run that has saved nothing yet.

    Raises:
        ValueError: `out` exists and is not an empty folder.
    """
    if out is not None:
        check_free(out, may_have_begun=may_have_begun)
        out.mkdir(parents=True, exist_ok=True)
        return out
    for number in count(1):
        folder = RUNS / f"{prefix}{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("count() never ends")


def check_free(out: Path | None, *, may_have_begun: bool = False) -> None:
    """Raises ValueError if `create_run_folder` would, before anything dear is built."""
    if out is None or not out.exists():
        return
    if out.is_dir() and all(path.match(".*.tmp") for path in out.iterdir()):  # what a killed writer has left
        return
    if not (may_have_begun and any(out.glob("*args.yaml*"))):
        raise ValueError(f"{out} exists already; choose another --out" + _resume_hint(out))


def check_writable(out: Path | None) -> None:
    """Raises ValueError if `out`, or a run folder below runs/, cannot be made or written to."""
    folder = out or RUNS
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"cannot write to {out or RUNS}: {folder} is a file")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {out or RUNS}: {error.strerror} ({folder})") from error


def newest_run() -> Path:
    """The run below runs/ that was written last.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [*RUNS.glob("*/best.safetensors"), *RUNS.glob("*/infer_command.txt")]  # the latter of --fold all
    found = sorted(files, key=lambda file: file.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"there is no trained model below {RUNS.resolve()}; run train.py first, or give --weights"
        )
    return found[-1].parent


def _resume_hint(out: Path) -> str:
    return (
        ", or go on with it by --resume" if any((out / name).is_file() for name in ("last.pt", "splits.json")) else ""
    )
