"""What the settings of all commands are checked with."""

import dataclasses
from typing import Any


def default_of(config: object, name: str) -> Any:
    found = next(f for f in dataclasses.fields(config) if f.name == name)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def check(config: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {getattr(config, name)}")
