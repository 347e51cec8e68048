"""Class maps: tables that merge, rename or drop the classes of labels."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from segkit.errors import DataError, UsageError
from segkit.files import read_text
from segkit.labels import BACKGROUND, is_background
from segkit.names import nearest

IGNORED = "ignore"  # the target of classes whose pixels are neither trained on nor scored
OTHERS = "*"  # all names without a line of their own; as a target, it keeps their names
HEADERS = {("original", "target"), ("source", "target"), ("from", "to"), ("old", "new"), ("name", "target")}
LISTED = 8  # names that a message lists


def read_class_map(file: str | os.PathLike) -> dict[str, str]:
    """Read the class of each name from a file with lines such as `Drink can,Metal`, in the order of the file.

    A target may occur several times, which makes one class of several. `background` and `ignore` are targets, too, in
    any case. `*,TARGET` is for all other names, and `*,*` keeps them. A header, empty lines and lines that begin with
    `#` are skipped. Columns are separated by commas, semicolons or tabs.

    Raises:
        MissingFileError: There is no such file.
        UsageError: It cannot be read, a line has another form, or a name occurs twice with different targets.
    """
    class_map: dict[str, str] = {}
    text = read_text(file)
    separator = next((s for s in ",;\t" if s in text), ",")
    first = True
    for number, cells in enumerate(csv.reader(text.splitlines(), delimiter=separator), start=1):
        cells = [cell.strip() for cell in cells]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if first and tuple(cell.casefold() for cell in cells) in HEADERS:
            first = False
            continue
        first = False
        if len(cells) != 2 or not all(cells):
            raise UsageError(
                f"{file}, line {number}: expected a line such as Drink can,Metal, got {separator.join(cells)!r}"
            )
        name, target = cells[0], _target(cells[1])
        if class_map.setdefault(name, target) != target:
            raise UsageError(f"{file}, line {number}: {name!r} becomes {target!r} here, but {class_map[name]!r} above")
    if not class_map:
        raise UsageError(f"{file} has no lines, expected a name and its class in each, such as Drink can,Metal")
    return class_map


def as_class_map(value: str | os.PathLike | Mapping[str, str] | None) -> dict[str, str]:
    """Return a class map from a file or a mapping; an empty one changes nothing."""
    if isinstance(value, str | os.PathLike):
        return read_class_map(Path(value))
    return {name: _target(target) for name, target in (value or {}).items()}


def _target(target: str) -> str:
    return BACKGROUND if is_background(target) else IGNORED if target.casefold() == IGNORED else target


def map_names(names: Sequence[str], class_map: Mapping[str, str], where: object) -> dict[str, str]:
    """Return the class of each name: a target of the map, `background` or `ignore`.

    Labels that have the classes of the map already, such as pseudo labels, keep them.

    Args:
        names: The names in the labels.
        class_map: The class of each name. A background needs no line.
        where: The file of the labels, for messages.

    Raises:
        DataError: A name has no line, or it is not clear whether the names were mapped before.
    """
    targets = {target for target in class_map.values() if target != OTHERS}
    plain = [name for name in names if not is_background(name)]
    if plain and all(name in targets for name in plain):
        changed = [name for name in plain if class_map.get(name, name) != name]
        if changed and all(name in class_map for name in plain):
            raise DataError(
                f"{where}: each of its classes {_listed(plain)} is a name and a class of the class map, so it is not "
                f"clear whether they were mapped before; rename the class {class_map[changed[0]]!r} in the class map"
            )
        return {name: name if name in plain else BACKGROUND for name in names}
    mapped, lacking = {}, []
    for name in names:
        if name in class_map:
            mapped[name] = class_map[name]
        elif is_background(name):
            mapped[name] = BACKGROUND
        elif name in targets:
            mapped[name] = name
        elif OTHERS in class_map:
            mapped[name] = name if class_map[OTHERS] == OTHERS else class_map[OTHERS]
        else:
            lacking.append(name)
    if lacking:
        raise DataError(
            f"{where}: the class map has no line for {_with_nearest(lacking, list(class_map))}; add a line for each, "
            f"or `{OTHERS},{BACKGROUND}` to drop all others, or `{OTHERS},{OTHERS}` to keep their names"
        )
    return mapped


def classes_of(mapped: Mapping[str, str], class_map: Mapping[str, str]) -> list[str]:
    """Return the classes of mapped names in the order of the class map, without background and ignored ones."""
    present = set(mapped.values()) - {BACKGROUND, IGNORED}
    return [name for name in dict.fromkeys([*class_map.values(), *mapped.values()]) if name in present]


def lines_without_class(names: Sequence[str], class_map: Mapping[str, str]) -> list[str]:
    """Return a text for each name in the map that the labels do not have, with the nearest one that they have.

    It is empty if the labels have the classes of the map already.
    """
    targets = set(class_map.values())
    if all(name in targets or is_background(name) for name in names):
        return []
    return [_with_nearest([name], names) for name in class_map if name not in (*names, OTHERS)]


def _with_nearest(names: Sequence[str], known: Sequence[str]) -> str:
    found = {name: nearest(name, known) for name in names}
    return _listed([f"{name!r}" + (f" (nearest: {near!r})" if near else "") for name, near in found.items()])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
