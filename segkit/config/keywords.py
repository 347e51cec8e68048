"""Settings as the keyword arguments of a Python function, with the names and defaults of a command."""

import dataclasses
import inspect
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec

from segkit.config.checks import default_of
from segkit.config.typed import ORDER, TextOrPath, describe
from segkit.config.words import ALSO_CALLED
from segkit.errors import UsageError
from segkit.names import unknown

Config = TypeVar("Config")
Function = TypeVar("Function", bound=Callable[..., Any])


def from_keywords(cls: type[Config], keywords: Mapping[str, Any]) -> Config:
    """Return the settings of a command from keyword arguments.

    Text stands for a path, and one value for a list of one. Words of the command line are understood, such as
    loss="dice" or loss=["ce=0.6", "dice=0.4"]. Any other object may take the place of a path, such as a data set or a
    loaded model; the workflow says whether it can use it.

    Args:
        cls: The dataclass of the settings.
        keywords: Arguments by name; all others have the defaults of the command.

    Raises:
        UsageError: An argument is unknown, is needed but missing, or has a value that cannot be used.
    """
    kinds, annotated = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in keywords:
        if name not in names:
            raise unknown("argument", name, names, ALSO_CALLED)
    for name in names:
        if name not in keywords and default_of(cls, name) is dataclasses.MISSING:
            raise UsageError(f"give `{name}`")
    keywords = {name: _parsed_words(value, annotated[name]) for name, value in keywords.items()}
    return cls(**{name: _as_declared(name, value, kinds[name]) for name, value in keywords.items()})


def takes_settings(cls: type) -> Callable[[Function], Function]:
    """Show the settings of `cls` in the signature of a function that takes them as `**settings`.

    Use it as a decorator: `help`, `inspect.signature` and editors then list each setting with its default.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        before = [p for p in own if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        names = {p.name for p in own}
        settings = [_parameter(cls, field) for field in dataclasses.fields(cls) if field.name not in names]
        after = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
        function.__signature__ = signature.replace(parameters=[*before, *settings, *after])  # type: ignore[attr-defined]
        return function

    return decorate


def _parameter(cls: type, field: dataclasses.Field) -> inspect.Parameter:
    default = default_of(cls, field.name)
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=get_type_hints(cls)[field.name]
    )


def _parsed_words(value: Any, annotated: Any) -> Any:
    """Return the mapping that words such as "ce=0.6" stand for; other values as they are."""
    words = [value] if isinstance(value, str) else value
    if get_origin(annotated) is not Annotated or get_origin(get_args(annotated)[0]) is not dict:
        return value
    if not (words and isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)):
        return value
    (spec,) = [extra for extra in annotated.__metadata__ if isinstance(extra, PrimitiveConstructorSpec)]
    return spec.instance_from_str(list(words))


def _as_declared(name: str, value: Any, kind: Any) -> Any:
    """Return the value as the type that is declared for it."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else [kind]
    if value is None and NoneType in members:
        return None
    for member in sorted(members, key=_rank):
        taken, converted = _convert(name, value, member)
        if taken:
            return converted
    raise UsageError(f"`{name}` must be {describe(kind)}, got {value!r}")


def _convert(name: str, value: Any, kind: Any) -> tuple[bool, Any]:
    """Return whether `value` fits `kind`, and the value as that type."""
    origin = get_origin(kind)
    if origin is Literal:
        return any(value is choice or value == choice for choice in get_args(kind)), value
    if origin is tuple:
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return True, tuple(_as_declared(name, item, get_args(kind)[0]) for item in (value if is_list else [value]))
    if origin is dict:
        return isinstance(value, Mapping), dict(value) if isinstance(value, Mapping) else value
    if kind is Any:
        return True, value
    if kind is bool:
        return isinstance(value, bool), value
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool), value
    if kind is float:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return is_number, float(value) if is_number else value
    if kind is TextOrPath and isinstance(value, bool):  # such as `pretrained`, a word on the command line
        return True, str(value).lower()
    if kind in (str, TextOrPath):
        is_text = isinstance(value, str | os.PathLike)
        text = os.fspath(value) if is_text else value
        return is_text, os.path.expanduser(text) if is_text and kind is TextOrPath else text
    if kind is Path:
        is_plain = isinstance(value, bool | numbers.Number)
        return not is_plain, Path(value).expanduser() if isinstance(value, str | os.PathLike) else value
    return False, value


def _rank(kind: Any) -> int:
    """Return the place of a type in the order in which the members of a union are tried."""
    return (*ORDER, Any).index(get_origin(kind) or kind)
