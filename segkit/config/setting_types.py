"""Types of settings whose form on the command line does not follow from a plain type."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from segkit.class_map import read_class_map
from segkit.config.yaml_values import TextOrPath, parse_any
from segkit.errors import UsageError
from segkit.files import with_home

# Names that other tools have for our settings, for hints; their spelling is too different to find ours by it.
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
NO_CRF = (["off"], ["None"])


def import_words(modules: Sequence[str]) -> list[str]:
    """Return the words of a command line that import modules first."""
    return ["--imports", *modules] if modules else []


def _parse_losses(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(value) if sign else 1.0 for name, sign, value in (word.partition("=") for word in words)}
    except ValueError:
        raise UsageError(f"expected NAME=WEIGHT such as ce=0.6 dice=0.4, got {' '.join(words)!r}") from None


def _parse_classes(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in (word.rsplit("=", 1) for word in words)}
    except ValueError:
        raise UsageError(f"expected CLASS=VALUE such as car=0.5 street=0.25, got {' '.join(words)!r}") from None


def _parse_options(words: list[str]) -> dict[str, Any]:
    if not all("=" in word for word in words):
        raise UsageError(f"expected NAME=VALUE such as channels=64, got {' '.join(words)!r}")
    try:
        return {name: parse_any(value) for name, value in (word.split("=", 1) for word in words)}
    except yaml.YAMLError as error:
        raise UsageError(f"expected NAME=VALUE with values as in YAML, got {' '.join(words)!r}") from error


def _parse_resume(words: list[str]) -> Path | Literal["auto"] | bool:
    if len(words) > 1:
        raise UsageError(f"--resume takes one run folder or checkpoint, or auto, got {' '.join(words)!r}")
    if words in (["auto"], ["off"]):
        return "auto" if words == ["auto"] else False
    return Path(words[0]) if words else True


def _mapping_spec(parse: Any, metavar: str) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={item}" for name, item in value.items()],
    )


ClassMap = Annotated[
    dict[str, str],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: read_class_map(with_home(words[0])),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"a map of {len(value)} names" if value else "none"],
    ),
]
Losses = Annotated[dict[str, float], _mapping_spec(_parse_losses, "NAME[=WEIGHT] ...")]
Options = Annotated[dict[str, Any], _mapping_spec(_parse_options, "NAME=VALUE ...")]
OfClasses = Annotated[dict[str, float], _mapping_spec(_parse_classes, "CLASS=VALUE ...")]
# None or `off`: no CRF. No word: the default CRF.
CRFWords = Annotated[
    tuple[str, ...] | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[PRESET] [NAME=VALUE ...]",
        instance_from_str=lambda words: None if words in NO_CRF else tuple(words),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["off"] if value is None else list(value),
    ),
]
# False: a new run. True, or no word: the run in --out. "auto": the run in --out if there is one.
ResumeWords = Annotated[
    Path | Literal["auto"] | bool,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[RUN|FILE|auto]",
        instance_from_str=_parse_resume,
        is_instance=lambda value: isinstance(value, Path | str | bool),
        str_from_instance=lambda value: [] if value is True else ["off" if value is False else str(value)],
    ),
]
# Text such as `auto`, or a path whose `~` is expanded.
PathOrWord = Annotated[
    TextOrPath,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: with_home(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
BatchSize = Annotated[int | Literal["auto"], arg(metavar="N|auto")]
Modules = Annotated[tuple[str, ...], arg(metavar="MODULE ...")]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE ...")]
Sources = Annotated[tuple[Path, ...], arg(metavar="FILE|DIR ...")]
Folders = Annotated[tuple[Path, ...], arg(metavar="DIR ...")]
Folder = Annotated[Path | None, arg(metavar="DIR")]
