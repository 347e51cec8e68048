"""Checks of settings, shared by all commands."""

import dataclasses
import math
from typing import Any

from segkit.errors import UsageError


def default_of(config: object, name: str) -> Any:
    """Return the default of a setting; `config` is a settings class or object."""
    found = next(f for f in dataclasses.fields(config) if f.name == name)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def check(config: object, name: str, holds: bool, expected: str) -> None:
    """Raise an error that names the setting and the expected value, unless the check holds."""
    if not holds:
        raise UsageError(f"`{name}` must be {expected}, got {getattr(config, name)}")


def check_workers(config: Any) -> None:
    """Raise an error if the number of workers is negative."""
    check(config, "workers", config.workers is None or config.workers >= 0, "0 or more")


def check_finite(config: object) -> None:
    """Raise an error if a number is NaN or infinite."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = [one for one in (value if isinstance(value, tuple) else [value]) if isinstance(one, float)]
        check(config, field.name, all(map(math.isfinite, numbers)), "finite")
