"""evaluate: score models on labelled images, or compare two."""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segkit.config import EvaluateConfig, from_keywords, takes_settings
from segkit.console import Console, counted, percent, table
from segkit.data import SegmentationDataset, write_image
from segkit.files import write_json, write_records
from segkit.inference import BatchSize, Clock, Predictor, segment_dataset
from segkit.metrics import Evaluation, Interval, PerImageScores
from segkit.models import import_modules
from segkit.report import label_picture
from segkit.report.gallery import image_caption
from segkit.runs import RunLock, create_run_folder
from segkit.workflows.datasets import distinct_names, open_scored
from segkit.workflows.predictors import (
    ModelSource,
    find_models,
    load_scored_predictor,
    pick_threads,
    propose_engine,
    tell_rules,
    with_rules_of_models,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluateResult:
    """The scores of models, and the folder of their files. Shares are in 0..1; NaN for a class without a score.

    Attributes:
        folder: The folder with scores.json, classes.csv, images.csv and pictures.
        scores: The scores of the whole set by name, such as `miou`, `pixel_accuracy`, `ece`.
        iou: IoU of each class, by name.
        intervals: Lower and upper end of the 95 % bootstrap interval of each class's IoU, by name, and of `miou`. If a
            class has the name `miou`, it has the entry; `miou_low` and `miou_high` of `scores` are those of the mean.
        classes: All scores of each class, as in classes.csv.
        images: mIoU and IoU of the classes of each image, as in images.csv.
        differences: The IoU of each class minus its IoU with `compare`, as in differences.csv; empty without `compare`.
    """

    folder: Path
    scores: dict[str, float]
    iou: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    classes: list[Row]
    images: list[Row]
    differences: list[Row]


@takes_settings(EvaluateConfig)
def evaluate(*, verbose: bool = False, **settings: Any) -> EvaluateResult:
    """Score models on labelled images, and compare them with others, as `python -m segkit evaluate` does.

        result = segkit.evaluate(weights="runs/x", data="valid.json", images="photographs/")
        result.scores["miou"], result.iou["can"]

    Args:
        verbose: Print models, progress and tables.
        **settings: The settings of the command, see `python -m segkit evaluate --help`. `data` also takes a
            `SegmentationDataset`; `weights` and `compare` also take loaded models.

    Raises:
        UsageError: A setting cannot be used.
        DataError: An image or an annotation cannot be used, or a model has other classes than the data.
        NotFiniteError: A model returns NaN for an image.
    """
    config = from_keywords(EvaluateConfig, with_rules_of_models(EvaluateConfig, settings))
    import_modules(config.imports)
    console = Console(verbose=verbose)
    members, others = find_models(config)
    tell_rules(config, [*members, *others], console)
    data = open_scored(config, console, members[0].class_names, members[0].palette, members[0].mask_names)
    predictor = load_scored_predictor(config, members, data, console)
    other = None
    if others:
        console.print("compared with")
        other = load_scored_predictor(config, others, data, console)
    with RunLock() as lock, closing(predictor), nullcontext() if other is None else closing(other):
        out = create_run_folder(config.out, "evaluate", lock)
        return _evaluate(config, out, data, members, predictor, other, console)


def _evaluate(
    config: EvaluateConfig,
    out: Path,
    data: SegmentationDataset,
    members: Sequence[ModelSource],
    predictor: Predictor,
    other: Predictor | None,
    console: Console,
) -> EvaluateResult:
    """Score the models, compare them with the others, and write the results to `out`."""
    clock = Clock()
    result = _score(data, predictor, config.batch_size, console, clock)
    per_image, intervals = result.images.compute(), result.intervals()
    classes, names = class_rows(result, intervals), distinct_names(data)
    images = image_rows(names, per_image)
    values = {
        **result.to_dict(),
        "miou_low": float(intervals.low[-1]),
        "miou_high": float(intervals.high[-1]),
    }
    console.print(f"\n{describe(classes, values, len(data))}")
    facts = {
        "weights": [member.name for member in members],
        "data": [str(path) if isinstance(path, Path) else type(path).__name__ for path in config.data],
        "images": len(data),
        "classes": list(data.class_names),
    }
    numbers = {name: None if math.isnan(value) else value for name, value in values.items()}  # JSON has no NaN
    write_json(out / "scores.json", {**facts, **numbers}, indent=2)
    write_records(out / "classes.csv", plain_rows(classes))
    write_records(out / "images.csv", images)
    written = ["scores.json", "classes.csv", "images.csv"]
    worst = per_image.worst_images()[: config.worst].tolist()
    written += _save_picture(out / "worst.png", data, worst, {"prediction": (predictor, result)})

    differences: list[Row] = []
    if other is not None:
        before = _score(data, other, config.batch_size, console, clock)
        differences = difference_rows(data.class_names, result.images.included, result.intervals_of_difference(before))
        change = per_image.of_image - before.images.compute().of_image
        images = image_rows(names, per_image, before.images.compute())
        console.print(f"\nweights minus compare, in percentage points\n{describe_difference(differences)}")
        console.print(
            f"of {counted(len(data), 'image')}, {(change < 0).sum()} got worse and {(change > 0).sum()} better"
        )
        write_records(out / "differences.csv", plain_rows(differences))
        write_records(out / "images.csv", images)
        worse = [i for i in change.argsort(kind="stable").tolist()[: config.worst] if change[i] < 0]
        columns = {"compare": (other, before), "weights": (predictor, result)}
        written += ["differences.csv", *_save_picture(out / "regressions.png", data, worse, columns)]
    propose_engine(config, predictor, clock, console)
    console.print(f"\n{out}: {', '.join(written)}")
    return EvaluateResult(
        folder=out,
        scores=values,
        iou={row["class"]: row["iou"] for row in classes},
        intervals={"miou": (values["miou_low"], values["miou_high"])}
        | {row["class"]: (row["iou_low"], row["iou_high"]) for row in classes},
        classes=classes,
        images=images,
        differences=differences,
    )


def _score(
    data: SegmentationDataset, predictor: Predictor, batch_size: int | Literal["auto"], console: Console, clock: Clock
) -> Evaluation:
    result = Evaluation(data.class_names, exclude=data.ignored_labels)
    batches, threads = BatchSize(predictor, batch_size), pick_threads(predictor.device)
    found = segment_dataset(data, predictor, clock, batch_size=batches, threads=threads)
    for one in console.progress(found, total=len(data)):
        result.update(one.prediction.mask, one.prediction.probs, one.target)
    return result


def _save_picture(
    file: Path,
    data: SegmentationDataset,
    chosen: Sequence[int],
    columns: dict[str, tuple[Predictor, Evaluation]],
) -> list[str]:
    """Draw photograph, truth and predictions of some images; return the name of the file, or none if none is chosen.

    The images are predicted again, because the predictions of all images would not fit in memory.
    """
    if not chosen:
        return []
    images, targets = [data.image(i) for i in chosen], [data.target(i) for i in chosen]
    masks = {title: [predictor(image).mask for image in images] for title, (predictor, _) in columns.items()}
    captions = [
        [data.name(i), "", *(image_caption(result.images, i) for _, result in columns.values())] for i in chosen
    ]
    write_image(file, label_picture(images, {"truth": targets, **masks}, data.class_names, captions))
    return [file.name]


def describe(rows: Sequence[Row], values: Mapping[str, float], images: int) -> str:
    """Return the table of the classes and the scores of the set, in percent.

    Args:
        rows: See `class_rows`.
        values: The scores of the set by name, with `miou_low` and `miou_high`.
        images: Number of images.
    """
    of_set = {"mean Dice": "mean_dice", "pixel accuracy": "pixel_accuracy", "boundary mIoU": "boundary_miou"}
    of_images = {"mean over images: mIoU": "image_miou", "mIoU of the worst 5 % of images": "worst_image_miou"}
    lines = [
        ", ".join(f"{text} {percent(values[name])}" for text, name in part.items())
        for part in (of_set | {"calibration error": "ece"}, of_images)
    ]
    span = _span(values["miou_low"], values["miou_high"])
    head = f"mIoU {percent(values['miou'])} {span}, in 95 % of resamples of the {counted(images, 'image')}"
    total = max(1, sum(row["support"] for row in rows))
    header = ["class", "IoU %", "95 % of resamples", "Dice", "precision", "recall", "boundary IoU", "pixels %"]
    names = ("dice", "precision", "recall", "boundary_iou")
    cells = [
        [
            *(row["class"], percent(row["iou"]), _span(row["iou_low"], row["iou_high"])),
            *(percent(row[name]) for name in names),
            percent(row["support"] / total),
        ]
        for row in rows
    ]
    return "\n".join([*table(header, cells), "", head, *lines])


def describe_difference(rows: Sequence[Row]) -> str:
    """Return the table of the rows of `difference_rows`, in percentage points; unsure if 0 is in the interval."""
    cells = []
    for row in rows:
        if math.isnan(row["difference"]):
            cells.append([row["class"], "-", "-", "-"])
            continue
        difference, low, high = (f"{100 * row[name]:+.2f}" for name in ("difference", "low", "high"))
        verdict = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "unsure"
        cells.append([row["class"], difference, f"[{low}, {high}]", verdict])
    return "\n".join(table(["class", "IoU difference", "95 % of resamples", "verdict"], cells))


def class_rows(evaluation: Evaluation, intervals: Interval) -> list[Row]:
    """Return one record per class: scores in 0..1, NaN if it is not scored; support in pixels."""
    scores = evaluation.scores
    columns = {
        **{"iou": scores.iou, "iou_low": intervals.low[:-1], "iou_high": intervals.high[:-1]},
        **{"dice": scores.dice, "precision": scores.precision, "recall": scores.recall},
        "boundary_iou": evaluation.boundary.compute().iou,
        "calibration_error": evaluation.calibration.compute().class_ece,
    }
    scored = [np.where(evaluation.images.included, column, np.nan).tolist() for column in columns.values()]
    rows = zip(scores.class_names, *scored, scores.support.tolist(), strict=True)
    return [dict(zip(("class", *columns, "support"), row, strict=True)) for row in rows]


def difference_rows(names: Sequence[str], included: np.ndarray, intervals: Interval) -> list[Row]:
    """Return the IoU difference of each class, NaN if it is not scored, and of mIoU, each with its interval."""
    scored = np.append(included, True)
    columns = [np.where(scored, x, np.nan).tolist() for x in (intervals.estimate, intervals.low, intervals.high)]
    rows = zip((*names, "mIoU"), *columns, strict=True)
    return [dict(zip(("class", "difference", "low", "high"), row, strict=True)) for row in rows]


def image_rows(names: Sequence[str], scores: PerImageScores, other: PerImageScores | None = None) -> list[Row]:
    """Return one record per image: mIoU over its classes, and the IoU of each; empty for a class that it lacks.

    Args:
        names: The names of the images.
        scores: Their scores.
        other: Scores of the same images to compare with.
    """
    rows = []
    for i, name in enumerate(names):
        row = {"image": name, "miou": _cell(scores.of_image[i])}
        if other is not None:
            row["compare_miou"] = _cell(other.of_image[i])
            row["difference"] = _cell(scores.of_image[i] - other.of_image[i])
        classes = zip(scores.class_names, scores.iou[i], strict=True)
        rows.append(row | {f"iou/{c}": _cell(value) for c, value in classes})
    return rows


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the records for a CSV: six digits for fractions, and an empty cell for NaN."""
    return [{k: _cell(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _span(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{100 * low:.2f}, {100 * high:.2f}]"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
