"""Read settings from defaults, a recipe, YAML files and the command line; the later one wins."""

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from segkit.config.checks import default_of
from segkit.config.data import SHARED_WITH_TRAINING
from segkit.config.help import PAGES, help_texts, in_groups
from segkit.config.recipes import RECIPES, list_recipes, read_recipe
from segkit.config.setting_types import ALSO_CALLED
from segkit.config.train import TrainConfig
from segkit.config.yaml_files import Setting, format_settings, read_settings
from segkit.errors import UsageError
from segkit.names import nearest

Config = TypeVar("Config")
COMMAND_LINE = "command line"
SHOWN = {"": "none", "None": "none", "False": "off", "True": "on"}  # default values in the help


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """Options that every command has in addition to its settings."""

    config: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE|RUN ...")] = ()
    """YAML files with settings, merged from left to right; the command line wins. RUN: the args.yaml of that run; other
    commands than train take from it only how images and labels are read."""
    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print all settings and where each comes from, as a file for --config, and exit."""


def parse_args(
    cls: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    start_from: Callable[[Config], Mapping[str, Setting]] | None = None,
    recipes: Path = RECIPES,
) -> Config:
    """Read the command line, and the recipe and YAML files that it names.

    --help, --print-config and --recipe help print and exit with SystemExit(0).

    Args:
        cls: The settings class of the command.
        argv: The arguments. By default those of the process.
        prog: Name of the command in the help.
        start_from: Function from the settings to settings of lower priority than recipe and files, such as the
            settings of the run to resume. It gets settings that are not checked yet.
        recipes: Folder of the recipes.

    Raises:
        UsageError: An option, a recipe or a setting does not exist, or a value is invalid.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    given = _given_options(cls, argv)
    if given.get("recipe") == ["help"]:
        print(list_recipes(recipes))
        sys.exit(0)
    if "config" in given and not given["config"]:
        raise UsageError("--config needs at least one YAML file")
    found: dict[str, Setting] = {}
    for file in given.get("config", ()):
        found.update(_read_file(cls, Path(file)))
    # A file with most settings, such as the args.yaml of a run, which an older version may have written without the
    # newest ones, overrides all of the recipe that it names.
    recipe, origin = None, None
    if "recipe" in given:
        recipe, origin = "".join(given["recipe"][-1:]), COMMAND_LINE
    elif "recipe" in found and 2 * len(found) < len(dataclasses.fields(cls)):
        recipe, origin = found["recipe"]
    if recipe not in (None, "None"):
        found = {**read_recipe(cls, recipe, origin, recipes), **found}
    values = _parse(cls, argv, found, prog, is_help="help" in given)
    if start_from:
        unchecked = object.__new__(cls)  # settings whose __post_init__, which checks them, has not run
        vars(unchecked).update(values)
        below = start_from(unchecked)
        below = {name: setting for name, setting in below.items() if name not in found and name not in given}
        found |= below
        values |= {name: setting.value for name, setting in below.items()}
    origins: dict[str, str | None] = {}  # None for a default
    for name, value in values.items():
        otherwise = found[name].value if name in found else default_of(cls, name)
        if name in given or value != otherwise:  # a positional argument is known by its value only
            origins[name] = COMMAND_LINE
        else:
            origins[name] = found[name].origin if name in found else None
    try:
        settings = cls(**values)
    except UsageError as error:  # say which file or recipe has the setting that the error names first
        names = re.findall(r"`([a-z_]+)", str(error))
        origin = origins.get(names[0]) if names else None
        raise UsageError(f"{error} ({origin})" if origin not in (None, COMMAND_LINE) else str(error)) from None
    if "print_config" in given:
        print(format_settings(settings, origins), end="")
        sys.exit(0)
    return settings


def _read_file(cls: type, path: Path) -> dict[str, Setting]:
    """Return the settings in a file that a command takes.

    Of a run, train takes all settings. Other commands take only how images and labels are read: the rest is about the
    training, such as its data.
    """
    if cls is TrainConfig or not path.is_dir():
        return read_settings(cls, path)
    known = {field.name for field in dataclasses.fields(cls)}
    if known.isdisjoint(SHARED_WITH_TRAINING):
        raise UsageError(f"--config {path}: this command shares no setting with training; give a YAML file")
    return {
        name: value
        for name, value in read_settings(TrainConfig, path).items()
        if name in SHARED_WITH_TRAINING and name in known
    }


def _given_options(cls: type, argv: Sequence[str]) -> dict[str, list[str]]:
    """Return the options of a command line by setting, with the words that follow them.

    Raises:
        UsageError: An option does not exist.
    """
    fields = [*dataclasses.fields(cls), *dataclasses.fields(FileOptions)]
    known = {name: name for name in ("help", *(field.name for field in fields))}
    known |= {f"no_{field.name}": field.name for field in fields if field.type is bool}
    given: dict[str, list[str]] = {}
    words: list[str] = []  # words before the first option are positional
    for word in argv:
        if not word:  # As a path it would be the working folder.
            raise UsageError("an argument is empty; is a variable of the shell not set?")
        if not re.match("--?[A-Za-z]", word):
            words.append(word)
            continue
        option, _, value = word.partition("=")
        name = "help" if option == "-h" else option.lstrip("-").replace("-", "_")
        if name.startswith("tyro_"):
            continue
        if name not in known or not (option.startswith("--") or option == "-h"):
            near = nearest(name, known, ALSO_CALLED)
            hint = f"did you mean --{near.replace('_', '-')}?" if near else "--help lists them all"
            raise UsageError(f"unknown option {option}; {hint}")
        words = given.setdefault(known[name], [])
        words += [value] if value else []
    return given


def _parse(cls: type, argv: Sequence[str], found: Mapping[str, Setting], prog: str, *, is_help: bool) -> dict[str, Any]:
    """Return all settings by name: from the command line, or else from `found`, or else the defaults.

    tyro shows nested dataclasses as groups, so the flat settings are nested for tyro and flattened again.
    """
    options = [cls, FileOptions]
    defaults = {field.name: default_of(part, field.name) for part in options for field in dataclasses.fields(part)}
    defaults |= {name: setting.value for name, setting in found.items()}
    hints = {name: hint for part in options for name, hint in get_type_hints(part, include_extras=True).items()}
    texts = help_texts(cls) | help_texts(FileOptions)

    def make(names: Sequence[str], **groups: Any) -> Any:
        types = {name: Annotated[hints[name], _with_help(texts[name])] for name in names}
        types |= {name: Annotated[type(group), tyro.conf.arg(name=name[1:], help="")] for name, group in groups.items()}
        form = dataclasses.make_dataclass(cls.__name__, types.items(), namespace={"__doc__": ""}, eq=False, repr=False)
        values = [tyro.MISSING if defaults[name] is dataclasses.MISSING else defaults[name] for name in names]
        return form(*values, **groups)

    page = PAGES[cls]
    names = defaults.keys() - (page.hidden if is_help else ())
    groups = {f"_{name}": make(members) for name, members in in_groups(names, page.first).items()}
    form = make(page.first, **groups)
    try:
        parsed = tyro.cli(
            type(form),
            prog=prog,
            description=inspect.cleandoc(cls.__doc__),
            args=argv,
            default=form,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except SystemExit as stop:
        if not stop.code:  # tyro has printed the help
            example = page.example
            if not prog.endswith(".py"):
                example = re.sub(r"python (\w+)\.py", r"python -m segkit \1", example)
            print(f"\nexample:\n{textwrap.indent(example, '  ')}")
        raise
    values = {**vars(parsed)}
    for name in groups:
        values |= vars(values.pop(name))
    return {field.name: values[field.name] for field in dataclasses.fields(cls)}


def _with_help(text: str) -> object:
    """Return the help of an option, with "By default ..." only if that is true: a recipe may set a value."""
    text, by_default, meaning = text.partition("By default")

    def hint(default: str) -> str:
        if by_default and default in ("", "None"):
            return by_default + meaning
        return f"(default: {SHOWN.get(default, default)})"

    return tyro.conf.arg(help=text.rstrip(), help_behavior_hint=hint)
