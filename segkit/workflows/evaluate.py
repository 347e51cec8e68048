"""evaluate: score models on labelled images, or compare two."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.config import EvaluateConfig, from_keywords, takes_settings
from segkit.console import Console
from segkit.data import SegmentationDataset, write_image
from segkit.files import write_json, write_records
from segkit.inference import Predictor, segment_dataset
from segkit.metrics import Evaluation
from segkit.report import label_picture
from segkit.report.gallery import image_caption
from segkit.runs import create_run_folder
from segkit.workflows.datasets import open_scored
from segkit.workflows.predictors import find_members, load_scored_predictor
from segkit.workflows.score_tables import (
    Row,
    class_rows,
    describe,
    describe_difference,
    difference_rows,
    image_rows,
    plain_rows,
    set_scores,
    without_nan,
)


@dataclass(frozen=True)
class EvaluateResult:
    """The scores of models, and where they are written. Shares are in 0..1; NaN for a class without a score.

    Attributes:
        folder: The folder with scores.json, classes.csv, images.csv and pictures.
        scores: The scores of the whole set by name, such as `miou`, `pixel_accuracy`, `ece`.
        iou: IoU of each class, by name.
        intervals: Lower and upper end of the 95 % bootstrap interval of each class's IoU, by name, and of `miou`.
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
    config = from_keywords(EvaluateConfig, settings)
    console = Console(verbose=verbose)
    members = find_members(config.weights, config.member_weights)
    data = open_scored(config, console, members[0].class_names)
    predictor = load_scored_predictor(config, members, data, console)
    other = None
    if config.compare:
        console.print("compared with")
        other = load_scored_predictor(config, find_members(config.compare), data, console)
    out = create_run_folder(config.out, "evaluate")

    result = _score(data, predictor, console)
    per_image, intervals = result.images.compute(), result.intervals()
    classes, values = class_rows(result, intervals), set_scores(result, intervals)
    images = image_rows(_names(data), per_image)
    console.print(f"\n{describe(classes, values, len(data))}")
    facts = {
        "weights": [member.name for member in members],
        "data": [str(path) if isinstance(path, Path) else type(path).__name__ for path in config.data],
        "images": len(data),
        "classes": list(data.class_names),
    }
    write_json(out / "scores.json", {**facts, **without_nan(values)}, indent=2)
    write_records(out / "classes.csv", plain_rows(classes))
    write_records(out / "images.csv", images)
    written = ["scores.json", "classes.csv", "images.csv"]
    worst = per_image.worst_images()[: config.worst].tolist()
    written += _save_picture(out / "worst.png", data, worst, {"prediction": (predictor, result)})

    differences: list[Row] = []
    if other is not None:
        before = _score(data, other, console)
        differences = difference_rows(data.class_names, result.images.included, result.intervals_of_difference(before))
        change = per_image.of_image - before.images.compute().of_image
        images = image_rows(_names(data), per_image, before.images.compute())
        console.print(f"\nweights minus compare, in percentage points\n{describe_difference(differences)}")
        console.print(f"{(change < 0).sum()} of {len(data)} images are worse, {(change > 0).sum()} better")
        write_records(out / "differences.csv", plain_rows(differences))
        write_records(out / "images.csv", images)
        worse = [i for i in change.argsort(kind="stable").tolist()[: config.worst] if change[i] < 0]
        columns = {"compare": (other, before), "weights": (predictor, result)}
        written += ["differences.csv", *_save_picture(out / "regressions.png", data, worse, columns)]
    console.print(f"\n{out}: {', '.join(written)}")
    return EvaluateResult(
        folder=out,
        scores=values,
        iou={row["class"]: row["iou"] for row in classes},
        intervals={row["class"]: (row["iou_low"], row["iou_high"]) for row in classes}
        | {"miou": (values["miou_low"], values["miou_high"])},
        classes=classes,
        images=images,
        differences=differences,
    )


def _score(data: SegmentationDataset, predictor: Predictor, console: Console) -> Evaluation:
    result = Evaluation(data.class_names, exclude=data.ignored_labels)
    for one in console.progress(segment_dataset(data, predictor), total=len(data)):
        result.update(one.prediction.mask, one.prediction.probs, one.target)
    return result


def _names(data: SegmentationDataset) -> list[str]:
    return [data.name(i) for i in range(len(data))]


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
