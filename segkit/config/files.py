"""Settings in YAML files: read with their types and the lines that they stand in, and written."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

from segkit.config.names import nearest_name
from segkit.config.typed import TAGS, Mismatch, describe, read_value, show
from segkit.errors import UsageError


class Setting(NamedTuple):
    """A value, and where it was said."""

    value: Any
    origin: str


def read_settings(cls: type, path: Path, origin: str | None = None) -> dict[str, Setting]:
    """The settings of a command in a YAML file, or in the args.yaml of a run folder.

    Args:
        cls: The command's settings.
        path: File or run folder; a path in it starts from the working folder.
        origin: Where its values are said to come from; by default file and line.

    Raises:
        ValueError: it cannot be read, is no YAML, has a name that is unknown or comes twice, or a value of another
            type. Tags such as `!!python/object` are refused, and aliases.
    """
    path = path / "args.yaml" if path.is_dir() else path
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        _check_plain(root, path)
        return _read_root(cls, root, path, origin)
    except OSError as error:
        raise UsageError(f"cannot read the settings in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the settings in {path}: it is not text in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UsageError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise UsageError(f"{path}: lists and mappings lie too deep within each other") from None


def format_settings(settings: Any, origins: Mapping[str, str] | None = None) -> str:
    """The settings as YAML, a line for each, with where it comes from as a comment."""
    lines = []
    for field in dataclasses.fields(settings):
        origin = (origins or {}).get(field.name)
        line = f"{field.name}: {_format(getattr(settings, field.name))}"
        lines.append(f"{line}  # {origin}" if origin else line)
    return "\n".join(lines) + "\n"


def write_yaml(settings: Any, path: Path) -> None:
    """Writes the settings with the names of their flags; the file is one for --config."""
    temporary = path.with_name(f".{path.name}.tmp")  # a run that is killed here must find its settings again
    with temporary.open("w", encoding="utf-8") as file:
        file.write(format_settings(settings))
        file.flush()
        os.fsync(file.fileno())  # a power failure must not leave an empty one
    temporary.replace(path)


def _read_root(cls: type, root: yaml.Node | None, path: Path, origin: str | None) -> dict[str, Setting]:
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
            near = nearest_name(name, names)
            raise UsageError(f"{where}: unknown setting {name!r}" + (f", did you mean {near}?" if near else ""))
        if name in found:
            raise UsageError(f"{where}: {name} comes twice, first in {found[name].origin}")
        found[name] = Setting(_read(name, node, kinds[name], where), where)
    return {name: Setting(value, origin or where) for name, (value, where) in found.items()}


def _read(name: str, node: yaml.Node, kind: Any, where: str) -> Any:
    try:
        return read_value(node, kind)
    except Mismatch:
        raise UsageError(f"{where}: {name} must be {describe(kind)}, got {show(node)}") from None
    except ValueError as error:
        raise UsageError(f"{where}: {name}: {error}") from None


def _check_plain(root: yaml.Node | None, path: Path) -> None:
    """Raises ValueError for tags, which could name code, and for aliases, with which a short file can grow endless."""
    todo, seen = [root] if root else [], set()
    while todo:
        node = todo.pop()
        where = f"{path}:{node.start_mark.line + 1}"
        if node.tag not in TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise UsageError(f"{where}: the tag {tag} is refused; a setting is a plain value")
        if id(node) in seen:
            raise UsageError(f"{where}: an alias stands for this; write the value where it belongs")
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]


def _format(value: Any) -> str:
    text = yaml.safe_dump(
        _plain(value), default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("...\n").rstrip("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
