"""The nearest name to one that does not exist."""

import difflib
from collections.abc import Collection

# What other tools call it; far from our name, letter by letter.
ALSO_CALLED = {
    "learning_rate": "lr",
    "lr0": "lr",
    "wd": "weight_decay",
    "encoder": "backbone",
    "arch": "model",
    "architecture": "model",
    "batch": "batch_size",
    "imgsz": "crop",
    "img_size": "crop",
    "image_size": "crop",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "scheduler": "schedule",
    "criterion": "loss",
    "output_dir": "out",
    "input": "source",
    "checkpoint": "weights",
}


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """The name of `known` that is spelt most alike, or that other tools call so; None if there is none."""
    also = {other: ours for other, ours in ALSO_CALLED.items() if ours in known}
    found = difflib.get_close_matches(name, [*known, *also], n=1)
    return also.get(found[0], found[0]) if found else None
