"""What the settings of all commands are checked with."""

import dataclasses
import math
import os
from typing import Any

from segkit.errors import UsageError


def default_of(config: object, name: str) -> Any:
    found = next(f for f in dataclasses.fields(config) if f.name == name)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def check(config: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise UsageError(f"--{name.replace('_', '-')} must be {expected}, got {getattr(config, name)}")


def expand_user(config: object, *names: str) -> None:
    """Writes out a `~` at the beginning of paths that may be other words as well."""
    for name in names:
        if (value := getattr(config, name)) is not None:
            object.__setattr__(config, name, os.path.expanduser(value))


def check_workers(config: Any) -> None:
    check(config, "workers", config.workers is None or config.workers >= 0, "0 or more")


def check_finite(config: object) -> None:
    """Raises ValueError where a number is NaN or infinite."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = [one for one in (value if isinstance(value, tuple) else [value]) if isinstance(one, float)]
        check(config, field.name, all(map(math.isfinite, numbers)), "finite")
