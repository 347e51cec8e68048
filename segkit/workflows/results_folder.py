"""The folder of infer's results: which models and settings made them, so that only these continue there."""

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segkit._version import __version__
from segkit.config import InferConfig, default_of
from segkit.errors import UsageError
from segkit.files import is_file, parse_json, read_text, write_json
from segkit.models.transfer import differences
from segkit.runs import RunLock, create_run_folder
from segkit.workflows.predictors import ModelSource

RECORD = "infer.json"
KINDS = ("mask", "overlay", "probs")  # the results that are one file per image, each kind in a folder
CLASSES = "classes.csv"  # how many pixels of each class each image has
CLASS_COLUMNS = ("image", "class", "pixels", "percent")
OF_ALL = ("manifest.csv", CLASSES, "failed.csv", "predictions.json", "pseudo.json", "submission.csv")
# The settings that change no mask. All others are compared.
_NOT_COMPARED = {
    *("weights", "member_weights", "source", "images", "max_pixels", "out", "save", "skip_existing"),
    *("submission_sample", "submission_size", "pseudo_threshold", "pseudo_class_thresholds", "pseudo_min_share"),
    *("imports", "batch_size", "workers", "compile", "engine", "device"),
    *("class_names", "mean", "std"),  # a part of the models
}

_log = logging.getLogger(__name__)


def open_results(
    config: InferConfig, members: Sequence[ModelSource], class_names: Sequence[str], lock: RunLock
) -> Path:
    """Return the folder of the results, reserved by `lock`; a new one gets `infer.json`, which says what made it.

    Args:
        config: The settings.
        members: The models.
        class_names: The names of their labels.
        lock: Reserves the folder.

    Raises:
        UsageError: The folder exists and `skip_existing` is not set, it has results of other models or settings, or
            another process writes to it.
    """
    made = _describe(config, members)
    if not (config.skip_existing and config.out.is_dir()):
        out = create_run_folder(config.out, "infer", lock)
        write_json(out / RECORD, made, indent=2)
        return out
    out = config.out
    lock.take(out)
    if is_file(out / CLASSES) and _header(out / CLASSES) != list(CLASS_COLUMNS):
        raise UsageError(
            f"{out / CLASSES} is not a table of this command, which would replace it; rename it, or choose another "
            "`out`"
        )
    there = [out / name for name in (*KINDS, *OF_ALL) if _is_used(out / name)]
    if (out / RECORD).exists():
        _check_same(out, made)
    elif not there:
        write_json(out / RECORD, made, indent=2)
    elif _is_older_manifest(out / "manifest.csv", class_names):
        _log.warning("%s was made by an older segkit and does not say by which model; its masks are kept", out)
    else:
        raise UsageError(
            f"cannot continue in {out}: {there[0]} exists, and no {RECORD} says which model made it; choose another "
            "`out`"
        )
    return out


def _describe(config: InferConfig, members: Sequence[ModelSource]) -> dict[str, Any]:
    total = sum(member.weight for member in members)
    weights = [
        {"name": str(member.name), "sha256": member.fingerprint(), "share": round(member.weight / total, 6)}
        for member in members
    ]
    settings = {name: value for name, value in asdict(config).items() if name not in _NOT_COMPARED}
    if config.window is None:  # older versions knew no windows of models, and wrote 0 for whole images
        settings["window"] = "as in training" if any(member.window for member in members) else 0
    return json.loads(json.dumps({"segkit": __version__, "weights": weights, "settings": settings}))


def _check_same(out: Path, made: dict[str, Any]) -> None:
    file = out / RECORD
    content = parse_json(read_text(file), file)
    try:
        weights = [{**one, "name": str(one["name"])} for one in content["weights"]]
        before = [(one["sha256"], one["share"]) for one in weights]
        # A setting that did not exist yet had its default.
        settings = {name: content["settings"].get(name, _default(name)) for name in made["settings"]}
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{file} does not say which model made the results; choose another `out`") from error
    if before != [(one["sha256"], one["share"]) for one in made["weights"]]:
        then, now = (", ".join(one["name"] for one in some) for some in (weights, made["weights"]))
        raise UsageError(
            f"cannot continue in {out}: other weights made its results ({then} then, {now} now, which differ in "
            "content, order or share); choose another `out`"
        )
    if settings != made["settings"]:
        before, now = (
            {name: _in_words(value) for name, value in some.items()} for some in (settings, made["settings"])
        )
        raise UsageError(
            f"cannot continue in {out}: other settings made its results: {differences(before, now)}; choose another "
            "`out`"
        )


def _default(name: str) -> Any:
    return json.loads(json.dumps(default_of(InferConfig, name)))


def _in_words(value: Any) -> Any:
    """Return a setting as a user would type it: `--crf` without words is an empty list, no `--crf` is None."""
    if isinstance(value, dict):
        value = [f"{name}={number}" for name, number in value.items()]
    elif value is None:
        return "off"
    elif value == []:
        return "on"
    return (" ".join(map(str, value)) or "not set") if isinstance(value, list) else value


def _is_used(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _is_older_manifest(file: Path, class_names: Sequence[str]) -> bool:
    """Return whether a file is a manifest of masks with these classes."""
    header = _header(file)
    shares = [name.removeprefix("share/") for name in header if name.startswith("share/")]
    return header[:2] == ["image", "mask"] and shares == list(class_names)


def _header(file: Path) -> list[str]:
    """Return the first row of a CSV file; none if it cannot be read."""
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            return next(csv.reader(stream), [])
    except (OSError, csv.Error):
        return []
