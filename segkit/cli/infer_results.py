"""What infer makes of all images together: tables, COCO JSON, pseudo labels, submission."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from segkit.config import InferConfig

if TYPE_CHECKING:
    from segkit.inference import PredictionWriter, SourceImage


class Result(NamedTuple):
    """What became of an image: a row of the manifest, or why there is none."""

    source: "SourceImage"
    row: dict[str, Any] | None
    error: str | None = None
    pseudo: list[dict[str, Any]] | None = None


def conclude(
    config: InferConfig, out: Path, writer: "PredictionWriter", results: Sequence[Result], ids: Sequence[str]
) -> int:
    """Writes what is made of all images, says what there is, and gives the number of images that failed."""
    from segkit.inference.writers import write_table

    order = {name: number for number, name in enumerate(writer.targets)}
    results = sorted(results, key=lambda result: order[result.source.name])
    good = [result for result in results if result.row is not None]
    failures = [result for result in results if result.row is None]
    write_table(out / "manifest.csv", [result.row for result in good])
    (out / "failed.csv").unlink(missing_ok=True)
    write_table(out / "failed.csv", [{"image": f.source.name.as_posix(), "error": f.error} for f in failures])
    written = [*(f"{kind}/" for kind in writer.kinds), "manifest.csv"]
    if "coco" in config.save:
        written.append(_write_coco(out, writer, good))
    if "pseudo" in config.save:
        written.append(_write_pseudo(out, writer, good))
    if "submission" in config.save:
        written.append(_write_submission(config, out, writer, len(failures), ids))
    for failure in failures:
        print(f"segkit infer: left out: {failure.error}", file=sys.stderr)
    print(f"{len(good)} of {len(results)} images segmented. In {out}: {', '.join(filter(None, written))}")
    return len(failures)


def _write_coco(out: Path, writer: "PredictionWriter", good: Sequence[Result]) -> str:
    from segkit.inference.coco_results import annotations_of, image_record, write_coco

    records = []
    for number, result in enumerate(good, start=1):
        mask = writer.read_mask(result.source.name)
        records.append((image_record(result.source, mask.shape, number), annotations_of(mask)))
    write_coco(out / "predictions.json", writer.class_names, records)
    return "predictions.json"


def _write_pseudo(out: Path, writer: "PredictionWriter", good: Sequence[Result]) -> str:
    from segkit.inference.coco_results import image_record, write_coco

    taken = [result for result in good if result.pseudo is not None]
    records = [
        (image_record(result.source, (result.row["height"], result.row["width"]), number), result.pseudo)
        for number, result in enumerate(taken, start=1)
    ]
    write_coco(out / "pseudo.json", writer.class_names, records)
    print(f"{len(taken)} of {len(good)} images are sure enough for pseudo labels")
    return "pseudo.json"


def _write_submission(
    config: InferConfig, out: Path, writer: "PredictionWriter", failed: int, ids: Sequence[str]
) -> str | None:
    from segkit.inference import write_submission

    if failed:
        print(f"segkit infer: no submission.csv, since {failed} images are missing in it", file=sys.stderr)
        return None
    write_submission(
        out / "submission.csv", ids, lambda name: writer.read_mask(Path(name)), size=config.submission_size
    )
    return "submission.csv"
