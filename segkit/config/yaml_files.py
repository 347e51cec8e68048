"""Read settings from YAML files, with their types and lines, and write them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

from segkit.class_map import read_class_map
from segkit.config.setting_types import ALSO_CALLED
from segkit.config.yaml_values import TAGS, Mismatch, describe, read_value, show
from segkit.errors import UsageError
from segkit.files import read_text, with_home, write_whole
from segkit.names import nearest
from segkit.runs import RunFolder

# Settings that can only be set on the command line and by keywords: a file, such as the args.yaml of somebody else's
# run, must not decide which code runs.
NOT_IN_FILES = ("imports",)
DEEPEST = 50  # levels of lists and mappings; the functions that read and show them recurse once per level


class Setting(NamedTuple):
    """A value and where it comes from, such as `args.yaml:3`."""

    value: Any
    origin: str


def read_settings(cls: type, path: Path, origin: str | None = None) -> dict[str, Setting]:
    """Read the settings of a command from a YAML file, or from the args.yaml of a run folder.

    Args:
        cls: The settings class of the command.
        path: File or run folder. Relative paths in the file start from the working folder.
        origin: Origin of the values, for messages. By default file and line.

    Raises:
        UsageError: The file cannot be read, is not YAML, has an unknown or repeated name, a value of the wrong type, a
            tag such as `!!python/object`, or an alias.
    """
    path = RunFolder(path).args if path.is_dir() else path
    root = _compose_plain(path)
    if not isinstance(root, yaml.MappingNode):
        got = "is empty" if root is None else f"holds {show(root)}"
        raise UsageError(f"{path} {got}, expected lines such as `epochs: 40`")
    kinds = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    found: dict[str, Setting] = {}
    for key, node in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        name = key.value.replace("-", "_") if isinstance(key, yaml.ScalarNode) else show(key)
        if name not in names:
            near = nearest(name, names, ALSO_CALLED)
            raise UsageError(f"{where}: unknown setting {name!r}" + (f", did you mean {near}?" if near else ""))
        if name in NOT_IN_FILES:
            raise UsageError(f"{where}: {name} runs code, so it is not read from a file; set `{name}` directly")
        if name in found:
            raise UsageError(f"{where}: {name} occurs twice, first in {found[name].origin}")
        try:
            if kinds[name] == dict[str, str] and isinstance(node, yaml.ScalarNode):  # a class map may be a file
                found[name] = Setting(read_class_map(with_home(node.value)), where)
            else:
                found[name] = Setting(read_value(node, kinds[name]), where)
        except Mismatch:
            raise UsageError(f"{where}: {name} must be {describe(kinds[name])}, got {show(node)}") from None
        except UsageError as error:
            raise UsageError(f"{where}: {name}: {error}") from None
    return {name: Setting(value, origin or where) for name, (value, where) in found.items()}


def format_settings(settings: Any, origins: Mapping[str, str] | None = None) -> str:
    """Return the settings as YAML, one per line, with their origins as comments."""
    lines = []
    for field in dataclasses.fields(settings):
        if field.name in NOT_IN_FILES:
            continue
        origin = (origins or {}).get(field.name)
        value = _plain(getattr(settings, field.name))
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
        plain = text.removesuffix("...\n").rstrip("\n")  # YAML ends a document of one word by dots
        line = f"{field.name}: {plain}"
        lines.append(f"{line}  # {origin}" if origin else line)
    return "\n".join(lines) + "\n"


def write_yaml(settings: Any, path: Path) -> None:
    """Write the settings to a YAML file that --config can read."""
    write_whole(path, format_settings(settings), durable=True)


def _compose_plain(path: Path) -> yaml.Node | None:
    """Read a YAML file without tags, which could run code, and aliases, with which a short file can become huge."""
    text = read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UsageError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise UsageError(f"{path}: lists and mappings are nested too deeply") from None
    todo, seen = [(root, 0)] if root else [], set()
    while todo:
        node, depth = todo.pop()
        where = f"{path}:{node.start_mark.line + 1}"
        if node.tag not in TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise UsageError(f"{where}: the tag {tag} is refused; a setting is a plain value")
        if id(node) in seen:
            raise UsageError(f"{where}: an alias is used for this value; write the value itself in each place")
        if depth > DEEPEST:
            raise UsageError(f"{path}: lists and mappings are nested too deeply")
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            todo += [(part, depth + 1) for pair in node.value for part in pair]
    return root


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | dict | None) else None  # an object of the program has no text
