"""evaluate: trained models and images whose truth is known in; scores, tables and pictures out."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.process import errors_as_sentences
from segkit.config import EvaluateConfig, ScoreConfig, parse_args

if TYPE_CHECKING:
    from segkit.data import SegmentationDataset
    from segkit.inference import Predictor
    from segkit.metrics import Evaluation


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with errors_as_sentences("evaluate", EvaluateConfig):
        evaluate(parse_args(EvaluateConfig, argv, prog="segkit evaluate"))


def evaluate(config: EvaluateConfig) -> Path:
    """Prints the scores and writes them; gives the folder."""
    from segkit.cli.predictors import with_members
    from segkit.cli.scored_data import open_scored
    from segkit.runs import create_run_folder

    config = with_members(config)
    data = open_scored(config)
    predictor = open_predictor(config, data)
    other = _open_compared(config, data) if config.compare else None
    out = create_run_folder(config.out, "evaluate")
    result = _score(data, predictor)
    written = _conclude(config, data, predictor, result, out)
    if other is not None:
        written += _compare(config, data, (predictor, other), (result, _score(data, other)), out)
    print(f"\n{out}: {', '.join(written)}")
    return out


def open_predictor(config: ScoreConfig, data: "SegmentationDataset") -> "Predictor":
    """The models of --weights, whose classes must be those of the data."""
    from segkit.cli.predictors import load_predictor, with_members
    from segkit.cli.scored_data import check_model_classes
    from segkit.models.model_file import find_model_file
    from segkit.workflows.devices import pick_device, pick_workers

    config = with_members(config)
    weights = tuple(map(find_model_file, config.weights))
    predictor = load_predictor(
        replace(config, weights=weights),
        device=pick_device(config.device),
        crf_workers=pick_workers(config.workers) if len(data) > 1 else 0,
        probs="disk" if config.window else "memory",  # for calibration; a window says that images are large
    )
    check_model_classes(predictor.class_names, data, weights[0])
    return predictor


def show_progress(items: Iterable, count: int, unit: str = "image") -> Iterable:
    """The same, under a progress bar where somebody looks."""
    from tqdm import tqdm

    return tqdm(items, total=count, unit=unit, dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty())


def _open_compared(config: EvaluateConfig, data: "SegmentationDataset") -> "Predictor":
    print("compared with")
    return open_predictor(replace(config, weights=config.compare, member_weights=(), compare=()), data)


def _score(data: "SegmentationDataset", predictor: "Predictor") -> "Evaluation":
    from segkit.inference import segment_dataset
    from segkit.metrics import Evaluation

    result = Evaluation(data.class_names, exclude=data.ignored_labels)
    for one in show_progress(segment_dataset(data, predictor), len(data)):
        result.update(one.prediction.mask, one.prediction.probs, one.target)
    return result


def _conclude(
    config: EvaluateConfig, data: "SegmentationDataset", predictor: "Predictor", result: "Evaluation", out: Path
) -> list[str]:
    """Prints and writes the scores of --weights; gives the names of the files."""
    from segkit.cli.score_tables import class_rows, describe, image_rows, plain_rows, set_scores, write_json
    from segkit.inference.writers import write_table

    scores, intervals = result.images.compute(), result.intervals()
    rows, values = class_rows(result, intervals), set_scores(result, intervals)
    print(f"\n{describe(rows, values, len(data))}")
    write_json(out / "scores.json", {**_facts(config, data), **values})
    write_table(out / "classes.csv", plain_rows(rows))
    write_table(out / "images.csv", image_rows(_names(data), scores))
    chosen = scores.worst_images()[: config.worst].tolist()
    picture = _save_picture(out / "worst.png", data, chosen, {"prediction": (predictor, result)})
    return ["scores.json", "classes.csv", "images.csv", *picture]


def _compare(
    config: EvaluateConfig,
    data: "SegmentationDataset",
    predictors: Sequence["Predictor"],
    results: Sequence["Evaluation"],
    out: Path,
) -> list[str]:
    """Prints and writes how --weights differ from --compare; gives the names of the files."""
    from segkit.cli.score_tables import describe_difference, difference_rows, image_rows, plain_rows
    from segkit.inference.writers import write_table

    result, other = results
    rows = difference_rows(data.class_names, result.images.included, result.intervals_of_difference(other))
    now, before = result.images.compute(), other.images.compute()
    change = now.of_image - before.of_image
    print(f"\n--weights less --compare, in percentage points\n{describe_difference(rows)}")
    print(f"{(change < 0).sum()} of {len(data)} images are worse, {(change > 0).sum()} better")
    write_table(out / "differences.csv", plain_rows(rows))
    write_table(out / "images.csv", image_rows(_names(data), now, before))
    chosen = [i for i in change.argsort(kind="stable").tolist()[: config.worst] if change[i] < 0]
    columns = {"--compare": (predictors[1], other), "--weights": (predictors[0], result)}
    return ["differences.csv", *_save_picture(out / "regressions.png", data, chosen, columns)]


def _names(data: "SegmentationDataset") -> list[str]:
    return [data.name(i) for i in range(len(data))]


def _facts(config: EvaluateConfig, data: "SegmentationDataset") -> dict[str, Any]:
    return {
        "weights": [str(path) for path in config.weights],
        "data": [str(path) for path in config.data],
        "images": len(data),
        "classes": list(data.class_names),
    }


def _save_picture(
    file: Path,
    data: "SegmentationDataset",
    chosen: Sequence[int],
    columns: dict[str, tuple["Predictor", "Evaluation"]],
) -> list[str]:
    """Photograph, truth and predictions of some images, which are made anew: none was kept. Gives the file's name."""
    from segkit.cli.score_tables import image_caption
    from segkit.data import write_image
    from segkit.report import label_picture

    if not chosen:
        return []
    images, targets = [data.image(i) for i in chosen], [data.target(i) for i in chosen]
    masks = {title: [predictor(image).mask for image in images] for title, (predictor, _) in columns.items()}
    captions = [
        [data.name(i), "", *(image_caption(result.images, i) for _, result in columns.values())] for i in chosen
    ]
    write_image(file, label_picture(images, {"truth": targets, **masks}, data.class_names, captions))
    return [file.name]
