"""Read YAML values as the declared type of a setting: 1e-4 is a number, and `off` is text if text is expected."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin

import yaml

from segkit.errors import UsageError
from segkit.files import with_home

TextOrPath = NewType("TextOrPath", str)  # a word such as `auto`, or a path whose `~` is expanded
BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    TextOrPath: "text",
    Path: "a path",
    NoneType: "null",
}
MANY = {int: "whole numbers", float: "numbers", str: "words", Path: "paths", Any: "values"}
# Members of a union are tried in this order. Text comes last, because every value is valid text.
ORDER = (NoneType, bool, int, float, Literal, tuple, dict, Path, TextOrPath, str, Any)
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")}


class Mismatch(ValueError):
    """Raised for a value that does not have the declared type."""


def read_value(node: yaml.Node, kind: Any) -> Any:
    """Return the value of a node as the declared type.

    Numbers and booleans may be quoted. A single value may stand for a list of one, and `None` for null.

    Args:
        node: A node from `yaml.compose`.
        kind: NoneType, bool, int, float, str, TextOrPath, Path, a Literal, tuple[X, ...], dict[str, X], a union of
            these, or Any.

    Raises:
        Mismatch: the value does not have this type.
    """
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if NoneType in get_args(kind) and is_plain and node.value == "None":  # the same word as on the command line
            return None
        return first_that_fits(kind, lambda member: read_value(node, member))
    if kind is Any:
        return read_any(node)
    if origin is tuple:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(read_value(item, get_args(kind)[0]) for item in nodes)
    if origin is dict:
        return {key: read_value(item, get_args(kind)[1]) for key, item in read_mapping(node).items()}
    if not isinstance(node, yaml.ScalarNode) or _is_null(node) != (kind is NoneType):
        raise Mismatch
    if origin is Literal:
        for choice in get_args(kind):
            if str(choice) == node.value:
                return choice
        raise Mismatch
    return READERS[kind](node.value)


def first_that_fits(union: Any, read: Callable[[Any], Any]) -> Any:
    """Return what `read` returns for the first member of a union for which it does not raise Mismatch."""
    for member in sorted(get_args(union), key=_rank):
        try:
            return read(member)
        except Mismatch:
            continue
    raise Mismatch


def read_mapping(node: yaml.Node) -> dict[str, yaml.Node]:
    """Read a YAML mapping as `{name: node}`.

    Raises:
        Mismatch: the node is not a mapping of names.
        UsageError: A name occurs twice.
    """
    if not isinstance(node, yaml.MappingNode):
        raise Mismatch
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise Mismatch
        if key.value in found:
            raise UsageError(f"{key.value!r} occurs twice")
        found[key.value] = value
    return found


def read_any(node: yaml.Node | None) -> Any:
    """Return the value of a node without a declared type."""
    if isinstance(node, yaml.MappingNode):
        return {key: read_any(item) for key, item in read_mapping(node).items()}
    if isinstance(node, yaml.SequenceNode):
        return [read_any(item) for item in node.value]
    if node is None or _is_null(node):
        return None
    if node.style is not None:
        return node.value
    if node.tag.endswith(":bool"):
        return _read_bool(node.value)
    for read in (_read_int, _read_float):
        try:
            return read(node.value)
        except Mismatch:
            continue
    return node.value


def parse_any(text: str) -> Any:
    """Return the value of YAML text."""
    return read_any(yaml.compose(text, Loader=yaml.SafeLoader))


def describe(kind: Any) -> str:
    """Describe a type for messages, such as `a list of paths`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(describe(member) for member in sorted(args, key=_rank, reverse=True))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return f"a list of {MANY.get(args[0]) or describe(args[0])}"
    if origin is dict:
        return f"a mapping of names to {MANY[args[1]]}"
    return NAMES[kind]


def show(node: yaml.Node) -> str:
    """Return the text of a node on one line of at most 60 characters, for messages."""
    if isinstance(node, yaml.SequenceNode):
        text = f"[{', '.join(map(show, node.value))}]"
    elif isinstance(node, yaml.MappingNode):
        text = f"{{{', '.join(f'{show(key)}: {show(value)}' for key, value in node.value)}}}"
    elif node.style is not None:
        text = repr(node.value)
    else:
        text = node.value or "null"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rank(kind: Any) -> int:
    return ORDER.index(get_origin(kind) or kind)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _read_bool(text: str) -> bool:
    if text.lower() not in BOOLS:
        raise Mismatch
    return BOOLS[text.lower()]


def _read_int(text: str) -> int:
    if not re.fullmatch(r"[-+]?[0-9]+(_[0-9]+)*", text):
        raise Mismatch
    return int(text)


def _read_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise Mismatch from None
    if not math.isfinite(value):
        raise Mismatch
    return value


def _read_path(text: str) -> Path:
    if not text:
        raise Mismatch
    return Path(with_home(text))


READERS: Mapping[Any, Any] = {
    NoneType: lambda text: None,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: str,
    TextOrPath: with_home,
    Path: _read_path,
}
