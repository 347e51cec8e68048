"""A submission as CSV: `image_id,PredictionString`, a label for each pixel of a small map."""

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from segkit.errors import UsageError

COLUMNS = ["image_id", "PredictionString"]
LISTED = 10  # ids that do not fit, of each kind


def write_submission(
    file: Path, names: Sequence[str], mask_of: Callable[[str], np.ndarray], *, size: int = 256
) -> None:
    """Writes a row for each image: its labels row by row, parted by spaces, at size x size by the nearest pixel.

    Args:
        file: The CSV file.
        names: The ids, in the order of the rows; see `check_sample`.
        mask_of: The label map (H, W) uint8 of an id.
        size: Height and width of the map, in pixels.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name in names:
            small = cv2.resize(mask_of(name), (size, size), interpolation=cv2.INTER_NEAREST)
            writer.writerow([name, " ".join(map(str, small.ravel().tolist()))])
    os.replace(temporary, file)


def check_sample(sample: Path, names: Sequence[str]) -> list[str]:
    """The ids of a sample submission in its order, which must be those of the images.

    Raises:
        ValueError: it is not such a file, or its ids are others than the images'.
    """
    try:
        with sample.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            csv.field_size_limit(2**31 - 1)
            rows = csv.DictReader(stream)
            ids = [row["image_id"] for row in rows]
    except FileNotFoundError:
        raise UsageError(f"there is no sample submission at {sample}") from None
    except (KeyError, csv.Error):
        raise UsageError(f"{sample} is not a sample submission: it needs a column image_id") from None
    missing, extra = sorted(set(ids) - set(names)), sorted(set(names) - set(ids))
    if missing or extra or len(set(ids)) != len(ids):
        parts = [
            f"{len(found)} {what}: {', '.join(found[:LISTED])}{', ...' if len(found) > LISTED else ''}"
            for found, what in ((missing, "of its ids are no images of the source"), (extra, "images are not in it"))
            if found
        ]
        raise UsageError(f"{sample} does not fit the images: {'; '.join(parts) or 'it has an id twice'}")
    return ids
