"""RunFolder: the names of all files of a run; folders that are free or the newest; the lock of a folder."""

import errno
import os
import tempfile
from itertools import count
from pathlib import Path

from segkit.errors import MissingFileError, UsageError, as_segkit_error
from segkit.files import is_leftover, parse_json, read_text, with_home

RUNS = Path("runs")  # the default output folder of the commands
DEMO = RUNS / "demo-data"


class RunFolder:
    """The files of a training run, or of a cross-validation with a run for each fold.

    It only holds the names: the files need not exist.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.args = self.path / "args.yaml"  # the settings
        self.results = self.path / "results.csv"  # one row per epoch
        self.best = self.path / "best.safetensors"  # the model with the best validation mIoU
        self.last = self.path / "last.pt"  # everything that is needed to resume
        self.previous = self.path / "last.prev.pt"  # the checkpoint before it
        self.damaged = self.path / "last.damaged.pt"  # a checkpoint that could not be read
        self.environment = self.path / "env.json"  # versions, device and command
        self.data_report = self.path / "data_report.csv"  # findings about the data
        self.report = self.path / "report.html"
        self.curves = self.path / "curves.png"
        self.class_iou = self.path / "class_iou.png"
        self.confusion = self.path / "confusion_matrix.csv"
        self.confusion_picture = self.path / "confusion_matrix.png"
        self.train_batch = self.path / "train_batch.png"
        self.val_predictions = self.path / "val_predictions.png"
        self.worst_images = self.path / "worst.png"
        self.best_images = self.path / "best.png"
        # Of a cross-validation:
        self.splits = self.path / "splits.json"  # the validation images of each fold
        self.summary = self.path / "summary.csv"  # scores of each fold, mean and standard deviation; written last
        self.out_of_fold_confusion = self.path / "oof_confusion.csv"
        self.infer_command = self.path / "infer_command.txt"

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __truediv__(self, name: str | os.PathLike) -> Path:
        return self.path / name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFolder) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def fold(self, number: int) -> "RunFolder":
        """Return the run of one fold of a cross-validation."""
        return RunFolder(self.path / f"fold{number}")

    @property
    def has_checkpoint(self) -> bool:
        """Whether a training has been saved here and can be resumed."""
        return self.last.is_file() or self.previous.is_file()

    @property
    def is_cross_validation(self) -> bool:
        """Whether the folder holds the runs of several folds."""
        return self.splits.is_file()

    def validated(self) -> list[list[str]]:
        """Return the names of the validation images of each fold of a cross-validation.

        Raises:
            UsageError: splits.json cannot be read, or somebody has changed it.
        """
        splits = parse_json(read_text(self.splits), self.splits)
        try:
            names = [split["val"] for split in splits]
            is_whole = [split["fold"] for split in splits] == list(range(len(splits)))
        except (TypeError, KeyError, IndexError):
            is_whole = False
        if not is_whole or not names or not all(isinstance(of_fold, list) for of_fold in names):
            raise UsageError(f"{self.splits} is damaged, so the folds of {self} are not known")
        return names

    def folds(self) -> "list[RunFolder]":
        """Return the runs of all folds of a cross-validation, trained or not; none for a single run."""
        return [self.fold(i) for i in range(len(self.validated()))] if self.is_cross_validation else []


def find_folds(path: str | os.PathLike) -> list[Path]:
    """Return the run folders of all folds if `path` is a cross-validation, else `path` itself.

    Raises:
        MissingFileError: A fold has no model yet.
    """
    run = RunFolder(path)
    if not run.is_cross_validation:
        return [run.path]
    missing = [fold.path.name for fold in run.folds() if not fold.best.is_file()]
    if missing:
        raise MissingFileError(
            f"{path} has no model of {', '.join(missing)} yet; resume the cross-validation, or name the folds that "
            "have one"
        )
    return [fold.path for fold in run.folds()]


def run_to_resume(resume: str | os.PathLike | bool, out: str | os.PathLike | None) -> RunFolder | None:
    """Return the run that a training resumes, or None for a new run.

    Args:
        resume: False for a new run; a run folder, or a checkpoint in it; True for the run in `out`; "auto" for the run
            in `out` if it has been saved there, otherwise a new one.
        out: The run folder.
    """
    if resume is False or (resume in (True, "auto") and out is None):
        return None
    if resume in (True, "auto"):
        run = RunFolder(Path(with_home(out)))
        return run if resume is True or run.has_checkpoint or run.is_cross_validation else None
    path = Path(with_home(resume))
    return RunFolder(path.parent if path.is_file() else path)


def create_run_folder(
    out: Path | None,
    prefix: str,
    lock: "RunLock | None" = None,
    *,
    may_have_begun: bool = False,
    can_resume: bool = False,
) -> Path:
    """Make the folder `out`, or the first free one of runs/PREFIX1, runs/PREFIX2 ...

    Args:
        out: The folder; None for the next free one.
        prefix: First part of the names below runs/.
        lock: Reserves the folder, so that two processes cannot use the same new `out`.
        may_have_begun: `out` may hold the settings of a run that has saved nothing yet.
        can_resume: Whether the caller has an argument `resume`, for the message.

    Raises:
        UsageError: `out` exists and is not an empty folder, another process has reserved it, or it cannot be made.
    """
    if out is not None:
        check_free(out, may_have_begun=may_have_begun, can_resume=can_resume)
    check_writable(out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if lock is not None:
            lock.take(out)
            # Another process may have been faster.
            check_free(out, may_have_begun=may_have_begun, can_resume=can_resume)
        return out
    for number in count(1):
        folder = RUNS / f"{prefix}{number}"
        try:
            folder.mkdir(parents=True)
            if lock is not None:
                lock.take(folder)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("count() never ends")


def check_free(out: Path | None, *, may_have_begun: bool = False, can_resume: bool = False) -> None:
    """Raise UsageError if `create_run_folder` would because `out` exists, before anything costly is built."""
    if out is None or not out.exists():
        return
    inside = list(out.iterdir()) if out.is_dir() else []
    if out.is_dir() and all(map(is_leftover, inside)):
        return
    run = RunFolder(out)
    has_begun = run.args.is_file() or any(is_leftover(path, run.args.name) for path in inside)
    # Results are written after the first checkpoint. If it is missing, somebody has removed it; the model is kept.
    lost_checkpoint = run.results.is_file() and not run.has_checkpoint
    if not (may_have_begun and has_begun) or lost_checkpoint:
        is_saved = run.last.is_file() or run.is_cross_validation
        hint = ", or resume it with `resume`" if can_resume and is_saved else ""
        what = "holds a model, but no checkpoint to resume" if may_have_begun and lost_checkpoint else "exists already"
        raise UsageError(f"{out} {what}; choose another `out`{hint}")


def check_writable(out: Path | None) -> None:
    """Raise UsageError if `out`, or a run folder below runs/, cannot be made or written to."""
    folder = out or RUNS
    try:
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise UsageError(f"cannot write to {out or RUNS}: {folder} is a file")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fault = UsageError(f"cannot write to {out or RUNS}: {error.strerror} ({folder})")
        raise as_segkit_error(error) or fault from error


def newest_run() -> Path:
    """Return the run below runs/ that was written last, or the cross-validation that was finished last.

    Raises:
        MissingFileError: There is no trained model.
    """
    files = [*RUNS.glob(f"*/{RunFolder('').best.name}"), *RUNS.glob(f"*/{RunFolder('').summary.name}")]
    found = sorted(files, key=lambda file: file.stat().st_mtime)
    if not found:
        raise MissingFileError(
            f"there is no trained model below {RUNS.resolve()}; run train.py first, or pass `weights`"
        )
    return found[-1].parent


class RunLock:
    """Reserve run folders for this process until it exits the context, or ends in any other way.

    Has no effect if the system or the file system has no such locks.
    """

    def __init__(self) -> None:
        self._own: list[int] = []

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._own:
            os.close(handle)
            _handles.discard(handle)
        self._own.clear()

    def take(self, folder: Path) -> None:
        """Reserve a folder. One that does not exist is not reserved.

        Raises:
            UsageError: Another process has reserved it.
        """
        try:
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
        except (ImportError, FileNotFoundError):  # ImportError: Windows
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(
                    f"another process writes to {folder}; wait until it ends, or choose another `out`"
                ) from error
            return  # the file system has no locks
        self._own.append(handle)
        _handles.add(handle)
        # A forked process closes the handles: otherwise a DataLoader worker would keep the folder reserved after this
        # process died.
        if hasattr(os, "register_at_fork") and not _forks_release:
            os.register_at_fork(after_in_child=_close_handles)
            _forks_release.append(True)


_handles: set[int] = set()
_forks_release: list[bool] = []


def _close_handles() -> None:
    for handle in _handles:
        os.close(handle)
    _handles.clear()
