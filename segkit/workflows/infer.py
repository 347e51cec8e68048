"""predict: segment photographs and write masks, overlays and everything that is made of them."""

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from segkit.config import InferConfig, from_keywords, takes_settings
from segkit.console import Console, counted
from segkit.data.findings import EXAMPLES
from segkit.data.images import Reading, list_other_files, read_image_header
from segkit.demo import write_demo
from segkit.errors import DataError, MissingFileError, SegkitError, UnreadableFileError, UsageError
from segkit.files import Fingerprint, is_file, write_records, write_whole
from segkit.inference import (
    BatchSize,
    Clock,
    PredictionWriter,
    PseudoLabels,
    Segmented,
    SourceImage,
    check_sample,
    open_source,
    segment,
    write_coco,
    write_submission,
)
from segkit.inference.coco_results import annotations_of, image_record
from segkit.inference.source import CocoImages
from segkit.inference.stream import ahead
from segkit.labels import IGNORE_INDEX, background_of, foreground_of
from segkit.models import import_modules
from segkit.runs import DEMO, RunLock
from segkit.training import ranks_of_torchrun
from segkit.workflows.predictors import (
    export_to_cache,
    find_models,
    load_predictor,
    pick_device,
    pick_threads,
    pick_workers,
    propose_engine,
    tell_rules,
    with_rules_of_models,
)
from segkit.workflows.results_folder import CLASS_COLUMNS, CLASSES, KINDS, OF_ALL, RECORD, open_results

WAIT = timedelta(days=7)  # longest wait for the slowest process: the shares of images may take very different times

_log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """An image that could not be segmented.

    Attributes:
        image: Its name: the path below the source.
        error: What is wrong with it.
    """

    image: str
    error: str


@dataclass(frozen=True)
class PredictResult:
    """What `predict` wrote.

    Attributes:
        folder: The folder of the results.
        rows: The rows of manifest.csv, one per segmented image: its name, its files, its size, the share of each class.
        failures: The images that could not be segmented, as in failed.csv.
        unread: Files in the source folder that are not images of a known format, except for these results.
    """

    folder: Path
    rows: list[dict[str, Any]]
    failures: list[Failure]
    unread: list[Path] = field(default_factory=list)


class _Result(NamedTuple):
    """The row of an image in the manifest, or why there is none."""

    name: Path
    ids: tuple[int | str, ...]  # ids in the COCO JSON of the source
    row: dict[str, Any] | None
    error: str | None = None
    is_old: bool = False  # the files existed before this run
    was_replaced: bool = False  # they existed, but were made of another file with the name of the image
    has_pages: bool = False  # or frames, of which only the first is segmented
    pseudo: list[dict[str, Any]] | None = None
    pixels: tuple[int, ...] = ()  # of each class


@takes_settings(InferConfig)
def predict(*, verbose: bool = False, **settings: Any) -> PredictResult:
    """Segment every image of a source and write the results, as `python infer.py` does.

        result = segkit.predict(weights="runs/x", source="photographs/", out="masks/")

    Under torchrun, each process segments its share of the images, and the first one returns the result of all.

    Args:
        verbose: Print models, progress and what is written.
        **settings: The settings of the command, see `python infer.py --help`. `weights` also takes loaded models.

    Returns:
        The folder, its manifest, and the images that could not be read.

    Raises:
        UsageError: A setting cannot be used.
        DataError: The source does not exist, or has other classes than the model.
    """
    config = from_keywords(InferConfig, with_rules_of_models(InferConfig, settings))
    import_modules(config.imports)
    members, _ = find_models(config)
    _check_class_count(config, members[0].class_names)
    source = write_demo(DEMO)[1] if config.source is None else config.source
    reading = Reading(config.exif, config.max_pixels)
    images = open_source(source, config.images, members[0].class_names, reading)
    of_source = images.category_ids if isinstance(images, CocoImages) else {}
    if config.skip_existing and isinstance(images, list):
        own = {(config.out / kind).resolve() for kind in KINDS}  # earlier results, if `out` lies in the source
        images = [image for image in images if own.isdisjoint(image.path.resolve().parents)]
    names = [image.name for image in images] if isinstance(images, list) else images.names()
    ids = [name.as_posix() for name in names]
    if config.submission_sample:
        ids = check_sample(config.submission_sample, ids)
    with ranks_of_torchrun(None, timeout=WAIT) as ranks, RunLock() as lock:
        console = Console(verbose=verbose and ranks.is_first)
        if ranks.is_first:
            tell_rules(config, members, console)
        device = pick_device(config.device)
        if ranks.count > 1 and config.device == "auto" and device.type == "cuda":
            device = pick_device(f"cuda:{ranks.local_rank}")
        if config.engine == "onnx":  # in one process, before all load the files
            ranks.on_first(lambda: [export_to_cache(member, console) for member in members if not member.is_onnx])
        predictor = load_predictor(
            config,
            members,
            device=device,
            crf_workers=pick_workers(config.workers) if len(images) > 1 else 0,
            probs="memory" if {"probs", "pseudo"} & set(config.save) else "none",
            console=console,
        )
        pseudo = None
        if "pseudo" in config.save:
            thresholds = (config.pseudo_threshold, config.pseudo_class_thresholds, config.pseudo_min_share)
            pseudo = PseudoLabels(predictor.class_names, *thresholds)
        out = ranks.on_first(lambda: open_results(config, members, predictor.class_names, lock))
        needed = {"mask"} if {"coco", "submission"} & set(config.save) else set()  # both are made of the masks
        writer = PredictionWriter(
            out, predictor.class_names, names, [kind for kind in KINDS if kind in {*config.save, *needed}]
        )
        clock, batch_size = Clock(), BatchSize(predictor, config.batch_size)
        threads = pick_threads(device, ranks.count_here)
        todo, seen = _divide(ranks.share(images), writer, config.skip_existing)
        written: list[_Result] = []
        try:
            with (
                closing(predictor),
                console.progress(
                    segment(todo, predictor, clock, batch_size, threads=threads), total=len(names) // ranks.count
                ) as bar,
            ):
                _write(bar, writer, seen, pseudo, clock, batch_size, threads, reading, written)
        except BaseException:
            if ranks.is_first:
                with suppress(SegkitError, OSError, csv.Error):  # the reason for the stop matters more
                    _write_tables(writer, [*seen.done, *written], is_whole=False)
            raise
        results = ranks.gather_on_first([*seen.done, *written])
    if clock.seconds:
        console.print(f"time   {clock.shares()}")
        propose_engine(config, predictor, clock, console)
    if not ranks.is_first:
        return PredictResult(out, [], [])
    return _conclude(config, writer, results, ids, console, of_source, predictor.category_ids)


@dataclass(frozen=True)
class _Seen:
    """What is known about the images that were iterated so far.

    Attributes:
        done: The results that existed.
        replaced: The images that another file has replaced since their results were made.
        made_of: Size and digest of the images that were read.
    """

    done: list[_Result] = field(default_factory=list)
    replaced: set[Path] = field(default_factory=set)
    made_of: dict[Path, Fingerprint | None] = field(default_factory=dict)


def _check_class_count(config: InferConfig, class_names: Sequence[str]) -> None:
    """Refuse pseudo labels that no training could read, and warn of a COCO JSON that segkit cannot read."""
    classes, most = len(foreground_of(class_names)), IGNORE_INDEX - 1
    if classes <= most:
        return
    if "pseudo" in config.save:
        raise UsageError(
            f"`save` has pseudo, but the model has {classes} classes besides background, and a training takes {most}"
        )
    if "coco" in config.save:
        _log.warning(
            "predictions.json has %d categories; other tools read it, but train, evaluate and check read only files "
            "with up to %d",
            classes,
            most,
        )


def _divide(
    images: Iterable[SourceImage], writer: PredictionWriter, skip_existing: bool
) -> tuple[Iterator[SourceImage], _Seen]:
    """Return the images to segment, and a record that is filled while they are iterated and read."""
    seen = _Seen()

    def todo() -> Iterator[SourceImage]:
        for source in images:
            try:
                old = writer.existing(source.name) if skip_existing and writer.is_done(source.name) else None
            except (DataError, UnreadableFileError):  # the mask is damaged: make it again
                old = None
            if old is not None and old.row["source_sha256"]:  # masks of older versions do not say it
                now = source.fingerprint()
                if now is not None and now.sha256 != old.row["source_sha256"]:
                    seen.replaced.add(source.name)
                if now is None or source.name in seen.replaced:
                    old = None
            if old is None:
                yield replace(source, read=partial(read, source))
            else:
                seen.done.append(_Result(source.name, source.ids, old.row, is_old=True, pixels=old.pixels))

    def read(source: SourceImage) -> np.ndarray:
        # Before the image is read: if it is replaced in between, the next run with `skip_existing` sees it.
        seen.made_of[source.name] = source.fingerprint()
        return source.read()

    return todo(), seen


def _write(
    bar: tqdm,
    writer: PredictionWriter,
    seen: _Seen,
    pseudo: PseudoLabels | None,
    clock: Clock,
    batch_size: BatchSize,
    threads: int,
    reading: Reading,
    written: list[_Result],
) -> None:
    """Write the files of the images in threads; a progress bar names the stage that takes longest.

    Each result is added to `written` as soon as its files exist, so that none is lost if a later image stops the run.
    """

    def write(one: Segmented) -> None:
        written.append(write_one(one))

    def write_one(one: Segmented) -> _Result:
        if one.error is not None:
            return _Result(one.source.name, one.source.ids, None, str(one.error))
        files = writer.write(one.source.name, one.image, one.prediction, seen.made_of.pop(one.source.name))
        has_pages = one.source.path is not None and read_image_header(one.source.path, reading).animated
        labels = None if pseudo is None else pseudo(one.prediction)
        was_replaced = one.source.name in seen.replaced
        return _Result(
            one.source.name,
            one.source.ids,
            files.row,
            was_replaced=was_replaced,
            has_pages=has_pages,
            pseudo=labels,
            pixels=files.pixels,
        )

    def submitted() -> Iterator[tuple[None, Future]]:
        for one in bar:
            bar.set_postfix_str(f"limited by {clock.bottleneck()}", refresh=False)
            yield None, pool.submit(write, one)

    with ThreadPoolExecutor(threads) as pool:
        # The results of a batch come at once, and are written while the models run on the next one.
        for _ in ahead(submitted(), lambda: 2 * threads + batch_size.largest, clock, "writing"):
            pass


def _write_tables(writer: PredictionWriter, results: Iterable[_Result], *, is_whole: bool = True) -> list[Failure]:
    """Write manifest.csv, classes.csv and failed.csv; return the rows of failed.csv. A table without rows has no file.

    If the run was stopped (not `is_whole`), images that it did not reach keep the rows of an earlier run.
    """
    order = {name: number for number, name in enumerate(writer.targets)}
    results = sorted(results, key=lambda result: order[result.name])
    good = [result for result in results if result.row is not None]
    failures = [Failure(r.name.as_posix(), r.error) for r in results if r.error is not None]
    reached = {result.name.as_posix() for result in results}
    kept: set[str | None] = set()  # images with files of an earlier run
    for name, records in (
        ("manifest.csv", [result.row for result in good]),
        ("failed.csv", [failure._asdict() for failure in failures]),
    ):
        file = writer.out / name
        if not is_whole:
            earlier = [row for row in _rows(file) if row.get("image") not in reached]
            if name == "manifest.csv":
                files = ([writer.out / (row.get(kind) or "") for kind in writer.kinds] for row in earlier)
                earlier = [row for row, its_files in zip(earlier, files, strict=True) if all(map(is_file, its_files))]
                kept = {row.get("image") for row in earlier}
            records += earlier
            records = [row for row in records if row.keys() == records[0].keys()]
        if records:
            write_records(file, records)
        else:
            file.unlink(missing_ok=True)  # the file is from an earlier run
    file = writer.out / CLASSES
    earlier = [] if is_whole else [[*row.values()] for row in _rows(file) if row.get("image") in kept]
    if good or earlier:
        write_whole(file, partial(_write_shares, chain(_shares(good, writer.class_names), earlier)))
    else:
        file.unlink(missing_ok=True)
    return failures


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a table by column; none if there is no file."""
    if file.is_file():
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            yield from csv.DictReader(stream)


def _shares(results: Iterable[_Result], class_names: Sequence[str]) -> Iterator[Sequence[object]]:
    """Yield the rows of classes.csv, one for each image and class."""
    for result in results:
        whole = sum(result.pixels)
        for name, pixels in zip(class_names, result.pixels, strict=True):
            yield result.name.as_posix(), name, pixels, f"{100 * pixels / whole:.3f}"


def _write_shares(rows: Iterable[Sequence[object]], path: Path) -> None:
    # Row by row: with many images and classes, the whole table would take much memory.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(CLASS_COLUMNS)
        writer.writerows(rows)


def _conclude(
    config: InferConfig,
    writer: PredictionWriter,
    results: Iterable[_Result],
    ids: Sequence[str],
    console: Console,
    *category_ids: Mapping[str, int | str],
) -> PredictResult:
    """Write the results of all images together: tables, COCO JSON, pseudo labels, submission."""
    order = {name: number for number, name in enumerate(writer.targets)}
    results = sorted(results, key=lambda result: order[result.name])
    good = [result for result in results if result.row is not None]
    rows = [result.row for result in good]
    out = writer.out
    files = [writer.file(kind, result.name) for result in good for kind in writer.kinds]
    lost = [file for file in files if not is_file(file)]
    if lost:
        raise MissingFileError(
            f"results were removed while others were written: {len(lost)} of {len(files)}, such as {lost[0]}; "
            "`skip_existing` makes them again"
        )
    failures = _write_tables(writer, results)
    written = [*(f"{kind}/" for kind in writer.kinds), "manifest.csv", CLASSES] if good else []
    # Masks are read back from their files: all masks of a large source would not fit in memory, and with
    # `skip_existing` the masks of the earlier run exist only there.
    if "coco" in config.save:
        background = background_of(writer.class_names)
        found = ((result, annotations_of(writer.read_mask(result.name), background)) for result in good)
        write_coco(out / "predictions.json", writer.class_names, _records(found), *category_ids)
        written.append("predictions.json")
    if "pseudo" in config.save:
        taken = [result for result in good if result.pseudo is not None]
        once = [(result._replace(ids=result.ids[:1]), result.pseudo) for result in taken]  # to train on a file once
        write_coco(out / "pseudo.json", writer.class_names, _records(once), *category_ids)
        console.print(f"sure enough for pseudo labels: {len(taken)} of {counted(len(good), 'image')}")
        if not taken:
            _log.warning(
                "pseudo.json has no images, so that no training can use it; see `pseudo_threshold`, "
                "`pseudo_class_thresholds` and `pseudo_min_share`"
            )
        written.append("pseudo.json")
    if "submission" in config.save and failures:
        _log.warning(
            "no %ssubmission.csv, which would lack %s",
            "new " * (out / "submission.csv").exists(),
            counted(len(failures), "image"),
        )
    elif "submission" in config.save:
        file = out / "submission.csv"
        write_submission(file, ids, lambda name: writer.read_mask(Path(name)), size=config.submission_size)
        written.append(file.name)
    paged = [result.name.as_posix() for result in results if result.has_pages]
    if paged:
        _log.warning("only the first page or frame is segmented of %s", _listed(paged, "image"))
    replaced = [result.name.as_posix() for result in results if result.was_replaced]
    if replaced:
        _log.warning("results of images that have changed since were made again: %s", _listed(replaced, "image"))
    old = sum(result.is_old for result in good)
    earlier = [name for name in (*(f"{kind}/" for kind in KINDS), *OF_ALL) if (out / name).exists()]
    stale = [name for name in earlier if name not in (*written, "failed.csv")]
    if stale and old < len(good):
        _log.warning("results of an earlier run, which lack what is new: %s; name them in `save`", ", ".join(stale))
    unread = _unread(config.source, out, [*KINDS, *OF_ALL, RECORD])
    last = f"{len(good) - old} of {counted(len(results), 'image')} segmented"
    if old:
        last += f", {old} already there"
    last += f". In {out}: {', '.join(written) or 'no results'}"
    if unread:
        names = [path.relative_to(config.source).as_posix() for path in unread]
        last += f". Not read, as no image of a known format: {_listed(names, 'file')}"
    console.print(last)
    return PredictResult(out, rows, failures, unread)


def _unread(source: str | Path | None, out: Path, written: Sequence[str]) -> list[Path]:
    """Return the files in a source folder that are not images, except for results, which `out` may add to it."""
    if source is None or not Path(source).is_dir():
        return []
    own = {(out / name).resolve() for name in written} | ({out.resolve()} - {Path(source).resolve()})
    others = ((path, path.resolve()) for path in list_other_files(source))
    return [path for path, place in others if own.isdisjoint((place, *place.parents))]


def _listed(names: Sequence[str], noun: str) -> str:
    """Return text such as `2 files (a.txt, b.psd)`."""
    shown = ", ".join(names[:EXAMPLES]) + (" ..." if len(names) > EXAMPLES else "")
    return f"{counted(len(names), noun)} ({shown})"


def _records(found: Iterable[tuple[_Result, list[dict[str, Any]]]]) -> list[tuple[dict[str, Any], list]]:
    """Return the COCO records of images with their annotations, one for each id; an image without one is numbered."""
    return [
        (image_record(result.name, (result.row["height"], result.row["width"]), identifier), annotations)
        for number, (result, annotations) in enumerate(found, start=1)
        for identifier in result.ids or (number,)
    ]
