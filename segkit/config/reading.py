"""From defaults, recipes, YAML files and the command line to settings, in this order: the later one wins."""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from segkit.config.checks import default_of
from segkit.config.files import Setting, format_settings, read_settings
from segkit.config.names import nearest_name
from segkit.config.recipes import list_recipes, read_recipe
from segkit.errors import UsageError

Config = TypeVar("Config")
COMMAND_LINE = "command line"
# Beside the settings of a command: where they come from.
ABOUT_SETTINGS = [
    (
        "config",
        Annotated[
            tuple[Path, ...],
            tyro.conf.arg(
                metavar="FILE|RUN ...",
                help="YAML files of settings, merged from left to right; the command line wins. A run: its args.yaml.",
            ),
        ],
        (),
    ),
    (
        "print_config",
        Annotated[
            bool,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.arg(help="Print the settings, with where each comes from, as a file for --config, and stop."),
        ],
        False,
    ),
]


def parse_args(
    cls: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    start_from: Callable[[Config], Mapping[str, Setting]] | None = None,
) -> Config:
    """Reads the command line, and the recipe and YAML files that it names; --print-config ends the process.

    Args:
        cls: The command's settings.
        argv: The arguments; by default those of the process.
        prog: What the help calls the command.
        start_from: Gives settings that come before recipe and files, for the settings as they are without; those
            have not been checked yet.

    Raises:
        ValueError: an option, a recipe or a setting that does not exist, or a value that cannot be.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    unchecked = _unchecked(cls)
    _check_options(argv, unchecked)
    if _words_after(argv, "recipe") == ["help"]:
        print(list_recipes())
        sys.exit(0)
    found = _read_layers(cls, argv)
    parsed = _read_command_line(unchecked, found, argv, prog)
    below = start_from(parsed) if start_from else {}
    if below:
        found = {**below, **found}
        parsed = _read_command_line(unchecked, found, argv, prog)
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(cls)}
    origins = {name: _origin(cls, name, value, found) for name, value in values.items()}
    settings = _checked(cls, values, origins)
    if parsed.print_config:
        print(format_settings(settings, origins), end="")
        sys.exit(0)
    return settings


def _unchecked(cls: type) -> type:
    """The same settings, not checked yet, and those of `ABOUT_SETTINGS`."""
    namespace = {"__post_init__": lambda self: None, "__doc__": cls.__doc__, "__module__": cls.__module__}
    return dataclasses.make_dataclass(cls.__name__, ABOUT_SETTINGS, bases=(cls,), namespace=namespace, frozen=True)


def _check_options(argv: Sequence[str], unchecked: type) -> None:
    fields = dataclasses.fields(unchecked)
    names = [field.name for field in fields]
    known = {"help", *names, *(f"no_{field.name}" for field in fields if field.type is bool)}
    for option in (word.partition("=")[0] for word in argv if _is_option(word) and word != "-h"):
        name = _name_of(option)
        if not name.startswith("tyro_") and (name not in known or not option.startswith("--")):
            near = nearest_name(name, known)
            hint = f"did you mean --{near.replace('_', '-')}?" if near else "--help lists them all"
            raise UsageError(f"unknown option {option}; {hint}")


def _read_layers(cls: type, argv: Sequence[str]) -> dict[str, Setting]:
    """What the recipe says, and the files, which win."""
    files = _words_after(argv, "config")
    if files == []:
        raise UsageError("--config needs a YAML file, or more")
    found: dict[str, Setting] = {}
    for file in files or ():
        found.update(read_settings(cls, Path(file)))
    if "recipe" not in {field.name for field in dataclasses.fields(cls)}:
        return found
    words = _words_after(argv, "recipe")
    if words is not None:
        name, origin = "".join(words[-1:]), COMMAND_LINE
    else:
        name, origin = found.get("recipe", Setting(None, ""))
        name = None if _is_complete(cls, found) else name
    if name in (None, "None"):
        return found
    return {**read_recipe(cls, name, origin), **found}


def _is_complete(cls: type, found: Mapping[str, Setting]) -> bool:
    """Whether nothing is left for a recipe to say, as in a run's args.yaml, which outlives the recipe that it names."""
    return len(found) == len(dataclasses.fields(cls))


def _read_command_line(unchecked: type, found: Mapping[str, Setting], argv: Sequence[str], prog: str) -> Any:
    values = {field.name: default_of(unchecked, field.name) for field in dataclasses.fields(unchecked)}
    values = {name: tyro.MISSING if value is dataclasses.MISSING else value for name, value in values.items()}
    default = unchecked(**{**values, **{name: setting.value for name, setting in found.items()}})
    return tyro.cli(unchecked, prog=prog, args=argv, default=default, config=(tyro.conf.OmitArgPrefixes,))


def _origin(cls: type, name: str, value: Any, found: Mapping[str, Setting]) -> str | None:
    """Where a value comes from; None for a default that nobody has named."""
    if name in found and found[name].value == value:
        return found[name].origin
    return None if name not in found and value == default_of(cls, name) else COMMAND_LINE


def _checked(cls: type[Config], values: Mapping[str, Any], origins: Mapping[str, str | None]) -> Config:
    try:
        return cls(**values)
    except ValueError as error:
        names = [word.replace("-", "_") for word in re.findall(r"--([a-z][a-z-]*)", str(error))]
        origin = origins.get(names[0]) if names else None
        raise UsageError(f"{error} ({origin})" if origin not in (None, COMMAND_LINE) else str(error)) from None


def _words_after(argv: Sequence[str], name: str) -> list[str] | None:
    """The words that an option is given, wherever it stands; None if it does not."""
    found, taken = None, False
    for word in argv:
        if _is_option(word):
            option, _, value = word.partition("=")
            taken = _name_of(option) == name
            if taken:
                found = [*(found or ()), *([value] if value else ())]
        elif taken:
            found.append(word)
    return found


def _is_option(word: str) -> bool:
    return re.match("--?[A-Za-z]", word) is not None


def _name_of(option: str) -> str:
    return option.lstrip("-").replace("-", "_")
