"""segkit.check: what is in data sets, and what is wrong with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.checks import CheckedSet, check_sets, class_table, describe_set, finding_lines, save_pictures, write_tables
from segkit.config import CheckConfig, from_keywords, takes_settings
from segkit.console import Console
from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
from segkit.data.dataset import ImageFiles
from segkit.errors import UsageError
from segkit.runs import create_run_folder
from segkit.workflows.datasets import ALLOWED, check_kinds, share_out


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        sets: Each data set with its counts (`measures`) and its `findings`, worst first.
        folder: The folder of the tables and pictures.
        files: Their names.
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
    """Check data before training, as `python -m segkit check` does: classes, overlaps, faults, oddities, duplicates.

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
    sets = _open_sets(config)
    folder = create_run_folder(config.out, "check")
    checked = check_sets(sets, full=config.full, console=console)
    return CheckResult(tuple(checked), folder, (*write_tables(checked, folder), *save_pictures(checked, folder)))


def _open_sets(config: CheckConfig) -> dict[str, ImageFiles]:
    """Return the data sets by name, read without raising."""
    if any(isinstance(one, SegmentationDataset) for one in config.data):
        if not all(isinstance(one, ImageFiles) for one in config.data):
            raise UsageError("`data` must be files, or data sets whose images are files, not both")
        return {f"set {i}" if len(config.data) > 1 else "data": one for i, one in enumerate(config.data, start=1)}
    check_kinds(config.data, config.images, config.masks, (config.class_names, config.palette))
    names = _short_names(config.data)
    if config.masks:
        (masks,) = share_out(config.masks, (config.data,), "masks")
        return {
            name: FolderSegmentation.inspect(
                folder,
                mask_folder,
                class_names=config.class_names,
                palette=config.palette,
                exif=config.exif,
                max_pixels=config.max_pixels,
            )
            for name, folder, mask_folder in zip(names, config.data, masks, strict=True)
        }
    if len(config.images) not in (0, 1, len(config.data)):
        raise UsageError(
            f"`images` needs one folder, or one for each of the {len(config.data)} JSON files, got {len(config.images)}"
        )
    roots = config.images if len(config.images) > 1 else [*(config.images or [None])] * len(config.data)
    allowed = {name: getattr(config, name) for name in ALLOWED}
    sets: dict[str, ImageFiles] = {}
    class_names = None
    for name, file, root in zip(names, config.data, roots, strict=True):
        sets[name] = CocoSegmentation.inspect(
            file, root, class_names=class_names, exif=config.exif, max_pixels=config.max_pixels, **allowed
        )
        class_names = sets[name].class_names[1:]  # without background
    return sets


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as few as make them different."""
    if len(set(paths)) < len(paths):
        raise UsageError("`data` names the same file twice")
    whole = [(path.with_suffix("") if path.suffix.lower() == ".json" else path).absolute().parts for path in paths]
    for length in range(1, max(map(len, whole))):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
