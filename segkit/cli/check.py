"""check: data in; tables, CSVs and pictures of what is in it and what is wrong with it out."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.cli.process import errors_as_sentences
from segkit.config import CheckConfig, parse_args
from segkit.errors import DataError, UsageError
from segkit.labels import BACKGROUND

if TYPE_CHECKING:
    from segkit.checks.check import SetReport
    from segkit.checks.measure import CheckedSet, Progress
    from segkit.data.findings import Finding
    from segkit.data.images import Reading
    from segkit.data.mask_files import MaskReader


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with errors_as_sentences("check", CheckConfig):
        reports = check_data(parse_args(CheckConfig, argv, prog="segkit check"))
    if any(report.count("error") for report in reports):
        sys.exit(DataError.exit_code)


def check_data(config: CheckConfig) -> list["SetReport"]:
    """Prints the tables, writes CSVs and pictures, and gives the reports."""
    from segkit.checks.check import check
    from segkit.checks.pictures import save_pictures
    from segkit.checks.tables import class_table, describe, finding_lines, write_tables
    from segkit.runs import create_run_folder

    sets = _open_sets(config)
    out = create_run_folder(config.out, "check")
    reports = check(sets, full=config.full, progress=_progress_bar)
    print("\n".join(map(describe, reports)))
    print(f"\n{class_table(reports)}\n\n{finding_lines(reports)}")
    if not config.full:
        print("only the headers of the images were read; --full decodes them, and finds damaged and similar ones")
    written = [*write_tables(reports, out), *save_pictures(reports, out)]
    print(f"\n{out}: {', '.join(written)}")
    return reports


def _open_sets(config: CheckConfig) -> list["CheckedSet"]:
    from segkit.data.mask_files import MaskReader
    from segkit.workflows.datasets import check_kinds, share_out

    check_kinds(config.data, config.images, config.masks, (config.class_names, config.palette))
    (masks,) = share_out(config.masks, (config.data,), "--masks")
    names = _names(config.data)
    if config.masks:
        reader = MaskReader(config.class_names, config.palette, config.max_pixels)
        return [
            _open_folder(*source, reader, _reading(config)) for source in zip(config.data, masks, names, strict=True)
        ]
    roots = _each(config.images, config.data, "--images")
    sets: list[CheckedSet] = []
    for file, root, name in zip(config.data, roots, names, strict=True):
        sets.append(_open_coco(config, file, root, name, sets[0].class_names[1:] if sets else None))
    return sets


def _open_coco(
    config: CheckConfig, file: Path, root: Path | None, name: str, categories: Sequence[str] | None
) -> "CheckedSet":
    """A COCO file; `categories` are the names of those before it, whose labels it takes."""
    from segkit.checks.measure import CheckedSet
    from segkit.data.coco_file import Allowed, read_coco
    from segkit.data.coco_images import find_shared_files
    from segkit.data.rasterize import rasterize
    from segkit.workflows.datasets import ALLOWED

    allowed = Allowed(**{name: getattr(config, name) for name in ALLOWED})
    content = read_coco(file, root, reading=_reading(config), allowed=allowed, names=categories)
    return CheckedSet(
        name,
        (BACKGROUND, *content.class_names),
        content.items,
        content.annotations,
        lambda index: rasterize(content.annotations[index], content.items[index].size),
        [*content.findings, *find_shared_files(content.items)],
        _reading(config),
    )


def _open_folder(folder: Path, masks: Path, name: str, reader: "MaskReader", reading: "Reading") -> "CheckedSet":
    from segkit.checks.measure import CheckedSet
    from segkit.data.folder import read_folder

    found: list[Finding] = []
    items = read_folder(folder, masks, reader, found, reading=reading)
    return CheckedSet(
        name, reader.class_names, items, None, lambda index: reader.read(items[index].mask_path), found, reading
    )


def _reading(config: CheckConfig) -> "Reading":
    from segkit.data.images import Reading

    return Reading(config.exif, config.max_pixels)


def _each(given: Sequence[Path], data: Sequence[Path], flag: str) -> Sequence[Path | None]:
    """One folder for each of the sources: the only one given, or all of them."""
    if len(given) not in (0, 1, len(data)):
        raise UsageError(f"{flag} needs one folder, or one for each of the {len(data)} JSON files, got {len(given)}")
    return (list(given) or [None]) * (1 if len(given) > 1 else len(data))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    if len(set(paths)) < len(paths):
        raise UsageError("the same file is given twice")
    whole = [(path.with_suffix("") if path.suffix.lower() == ".json" else path).absolute().parts for path in paths]
    for length in range(1, max(map(len, whole))):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _progress_bar(text: str) -> "Progress":
    from tqdm import tqdm

    def bar(sequence: Sequence) -> Iterable:
        return tqdm(sequence, desc=text, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty())

    return bar
