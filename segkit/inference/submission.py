"""A submission as CSV: `image_id,PredictionString`, a label for each pixel of a small map."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from segkit.errors import MissingFileError, UsageError, as_segkit_error
from segkit.files import write_whole

COLUMNS = ["image_id", "PredictionString"]
LISTED = 10  # ids that a message names, of each kind


def write_submission(
    file: Path, names: Sequence[str], mask_of: Callable[[str], np.ndarray], *, size: int = 256
) -> None:
    """Write a row for each image: the labels of its map at size x size, row by row, separated by spaces.

    The map is resized to the nearest pixel.

    Args:
        file: The CSV file.
        names: The ids, in the order of the rows; see `check_sample`.
        mask_of: Returns the label map (H, W) uint8 of an id.
        size: Height and width of the map, in pixels.
    """

    def write(path: Path) -> None:  # row by row: the labels of all images would take much memory
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            for name in names:
                small = cv2.resize(mask_of(name), (size, size), interpolation=cv2.INTER_NEAREST)
                writer.writerow([name, " ".join(map(str, small.ravel().tolist()))])

    write_whole(file, write)


def check_sample(sample: Path, names: Sequence[str]) -> list[str]:
    """Return the ids of a sample submission in its order; they must be the names of the images.

    Raises:
        UsageError: The file does not exist, is not such a file, or has other ids.
    """
    try:
        with sample.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            csv.field_size_limit(2**31 - 1)
            ids = [row["image_id"] for row in csv.DictReader(stream)]
    except FileNotFoundError:
        raise MissingFileError(f"there is no sample submission at {sample}") from None
    except OSError as error:
        fault = UsageError(f"cannot read the sample submission {sample}: {error.strerror}")
        raise as_segkit_error(error) or fault from error
    except (KeyError, csv.Error):
        raise UsageError(f"{sample} is not a sample submission: it needs a column image_id") from None
    missing, extra = sorted(set(ids) - set(names)), sorted(set(names) - set(ids))
    if missing or extra or len(set(ids)) != len(ids):
        parts = [
            f"{len(found)} {what}: {', '.join(found[:LISTED])}{', ...' if len(found) > LISTED else ''}"
            for found, what in ((missing, "of its ids are not images of the source"), (extra, "images are not in it"))
            if found
        ]
        raise UsageError(f"{sample} does not fit the images: {'; '.join(parts) or 'it has an id twice'}")
    return ids
