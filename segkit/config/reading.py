"""From the command line, recipes and YAML files to settings, and back."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

RECIPES = Path(__file__).parents[1] / "recipes"
Config = TypeVar("Config")


def parse_args(
    cls: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Reads the command line; a recipe's settings stand before it, so that the command line wins.

    Args:
        cls: The command's settings.
        argv: The arguments; by default those of the process.
        prog: What the help calls the command.
        recipe: Name of a YAML file in `segkit/recipes`.
        settings: More settings that the command line wins over, such as those of `read_settings`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    settings = {**(_read_yaml(RECIPES / f"{recipe}.yaml") if recipe else {}), **(settings or {})}
    return tyro.cli(
        cls,
        prog=prog,
        args=[*_as_flags(settings), *argv],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def write_yaml(config: Any, path: Path) -> None:
    """Writes the settings with the names of their flags."""
    plain = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    temporary = path.with_name(f".{path.name}.tmp")  # a run that is killed here must find its settings again
    temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(path)


def read_settings(path: Path) -> dict[str, Any]:
    """What `write_yaml` has written, without the settings that are off or empty."""
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: value for name, value in plain.items() if value not in (None, False, [], {}, "")}


def _read_yaml(path: Path) -> dict[str, Any]:
    # BaseLoader leaves every scalar a string: the type of the setting decides, so that 1e-4 is a number.
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def _as_flags(settings: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, Mapping):
            words += [f"{key}={item}" for key, item in value.items()]
        elif value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
