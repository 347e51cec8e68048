"""Settings as the keyword arguments of a Python function, with the names and defaults of a command."""

import dataclasses
import inspect
import numbers
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec

from segkit.config.checks import default_of
from segkit.config.setting_types import ALSO_CALLED
from segkit.config.yaml_values import Mismatch, TextOrPath, describe, first_that_fits
from segkit.errors import UsageError
from segkit.files import with_home
from segkit.names import unknown

TAKE_OBJECTS = ("data", "val", "train_only", "weights", "compare")  # settings that take more than paths
# Settings that also take the object that a workflow would make of them: a DenseCRF, a TTA, a loaded model.
TAKE_ONE_OBJECT = ("crf", "tta", "init_from")

Config = TypeVar("Config")
Function = TypeVar("Function", bound=Callable[..., Any])


def from_keywords(cls: type[Config], keywords: Mapping[str, Any]) -> Config:
    """Return the settings of a command from keyword arguments, see `as_declared`.

    Args:
        cls: The dataclass of the settings.
        keywords: Arguments by name; all others have the defaults of the command.

    Raises:
        UsageError: An argument is unknown, is needed but missing, or has a value that cannot be used.
    """
    values = as_declared(cls, keywords)
    for field in dataclasses.fields(cls):
        if field.name not in values and default_of(cls, field.name) is dataclasses.MISSING:
            raise UsageError(f"give `{field.name}`")
    return cls(**values)


def as_declared(cls: type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments as the types that a settings class declares.

    Text stands for a path, one value for a list of one, and None for an empty list or mapping. Words of the command
    line are understood, such as loss="dice" or loss=["ce=0.6", "dice=0.4"]. In the lists of paths of
    `TAKE_OBJECTS`, and for `TAKE_ONE_OBJECT`, any other object is accepted, such as a data set or a loaded model; the
    workflow reports objects that it cannot use. `crf` may also be True or False, and `device` a torch.device.

    Args:
        cls: The dataclass of the settings.
        keywords: Arguments by name.

    Raises:
        UsageError: An argument is unknown, or has a value of another type.
    """
    kinds, annotated = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in keywords:
        if name not in names:
            raise unknown("argument", name, names, ALSO_CALLED)
    values = {}
    for name, value in keywords.items():
        if name in TAKE_ONE_OBJECT and _is_object(value) and not isinstance(value, Sequence | Mapping):
            values[name] = value
            continue
        if name == "device" and type(value).__name__ == "device":  # a torch.device; settings do not import torch
            value = str(value)
        if name == "crf" and isinstance(value, bool):
            value = () if value else None
        try:
            values[name] = _as_declared(_parsed_words(value, annotated[name]), kinds[name])
            if kinds[name] == tuple[Path, ...] and name not in TAKE_OBJECTS and any(map(_is_object, values[name])):
                raise Mismatch
        except Mismatch:
            got = textwrap.shorten(repr(value), 100, placeholder=" ...")
            if "\n" in repr(value):  # a model or a large array
                got = f"a {type(value).__name__}"
            raise UsageError(f"`{name}` must be {describe(kinds[name])}, got {got}") from None
    return values


def takes_settings(cls: type) -> Callable[[Function], Function]:
    """Show the settings of `cls` in the signature of a function that takes them as `**settings`.

    Use it as a decorator: `help`, `inspect.signature` and editors then list each setting with its default.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        before = [p for p in own if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        after = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
        kinds = get_type_hints(cls)
        settings = []
        for name in [field.name for field in dataclasses.fields(cls) if field.name not in {p.name for p in own}]:
            default = default_of(cls, name)
            default = inspect.Parameter.empty if default is dataclasses.MISSING else default
            keyword = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kinds[name])
            settings.append(keyword)
        function.__signature__ = signature.replace(parameters=[*before, *settings, *after])  # type: ignore[attr-defined]
        return function

    return decorate


def _parsed_words(value: Any, annotated: Any) -> Any:
    """Return the mapping that words such as "ce=0.6" stand for; other values as they are."""
    words = [os.fspath(value)] if isinstance(value, str | os.PathLike) else value
    if get_origin(annotated) is not Annotated or get_origin(get_args(annotated)[0]) is not dict:
        return value
    if not (words and isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)):
        return value
    (spec,) = [extra for extra in annotated.__metadata__ if isinstance(extra, PrimitiveConstructorSpec)]
    return spec.instance_from_str(list(words))


def _as_declared(value: Any, kind: Any) -> Any:
    """Return a value as the type that is declared for it.

    Raises:
        Mismatch: The value does not fit the type.
    """
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return first_that_fits(kind, lambda member: _as_declared(value, member))
    if origin in (tuple, dict) and value is None:
        return origin()
    if origin is tuple:
        of = get_args(kind)[0]
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        items = value if is_list else [value]
        return tuple(item if of is Path and _is_object(item) else _as_declared(item, of) for item in items)
    if origin is dict and isinstance(value, Mapping):
        return {key: _as_declared(item, get_args(kind)[1]) for key, item in value.items()}
    is_bool = isinstance(value, bool)
    if kind is float and isinstance(value, numbers.Real) and not is_bool:
        try:
            return float(value)
        except OverflowError:
            raise Mismatch from None
    if kind is TextOrPath and is_bool:  # such as `pretrained`, a word on the command line
        return str(value).lower()
    if isinstance(value, str | os.PathLike):
        if kind is str:
            return os.fspath(value)
        if kind is TextOrPath:
            return with_home(os.fspath(value))
        if kind is Path:
            if os.fspath(value) == "" or "\0" in os.fspath(value):
                raise Mismatch
            return Path(with_home(value))
    fits_as_it_is = (
        kind is Any
        or (kind is NoneType and value is None)
        or (kind is bool and is_bool)
        or (kind is int and isinstance(value, numbers.Integral) and not is_bool)
        or (origin is Literal and value in get_args(kind))
    )
    if not fits_as_it_is:
        raise Mismatch
    return int(value) if kind is int else value


def _is_object(value: Any) -> bool:
    """Return whether a value in a list of paths is something else, such as a data set or a loaded model."""
    return value is not None and not isinstance(value, str | bytes | os.PathLike | numbers.Number)
