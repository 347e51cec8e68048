"""segkit.check: count the classes of data sets, and find faults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.checks import CheckedSet, check_sets, class_table, describe_set, finding_lines, save_pictures, write_tables
from segkit.config import CheckConfig, from_keywords, takes_settings
from segkit.console import Console
from segkit.runs import RunLock, create_run_folder
from segkit.workflows.datasets import open_checked


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        sets: Each data set with its counts (`measures`) and its `findings`, worst first.
        folder: The folder of the tables and pictures.
        files: The names of the tables and pictures in `folder`.
    """

    sets: tuple[CheckedSet, ...]
    folder: Path
    files: tuple[str, ...]

    @property
    def errors(self) -> int:
        """Number of findings that would stop a training."""
        return sum(part.count("error") for part in self.sets)

    def __str__(self) -> str:
        described = "\n".join(map(describe_set, self.sets))
        return f"{described}\n\n{class_table(self.sets)}\n\n{finding_lines(self.sets)}"


@takes_settings(CheckConfig)
def check(*, verbose: bool = False, **settings: Any) -> CheckResult:
    """Check data before training, as `python -m segkit check` does: classes, overlaps, errors, warnings, duplicates.

        result = segkit.check(data=["train.json", "val.json"], images="photographs/", full=True)
        result.errors, result.sets[0].findings

    The data is not changed. Faults of images and annotations do not raise: they are findings of the result. `data`
    takes COCO JSON files, folders of images (with `masks`), or data sets of image files, such as `CocoSegmentation`.

    Args:
        verbose: Print the progress and the tables.
        **settings: The settings of the command, see `python -m segkit check --help`.

    Raises:
        UsageError: A setting cannot be used.
        DataError: A file is not a COCO JSON, or the sets have different classes.
    """
    console = Console(verbose=verbose)
    result = run_check(from_keywords(CheckConfig, settings), console)
    console.print(str(result))
    return result


def run_check(config: CheckConfig, console: Console) -> CheckResult:
    """Check data by the settings of the command, see `check`; prints only the progress."""
    sets = open_checked(config)
    with RunLock() as lock:
        folder = create_run_folder(config.out, "check", lock)
        checked = check_sets(sets, full=config.full, console=console)
        return CheckResult(tuple(checked), folder, (*write_tables(checked, folder), *save_pictures(checked, folder)))
