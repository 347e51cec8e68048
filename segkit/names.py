"""Names that do not exist, and the one that was probably meant."""

import difflib
from collections.abc import Collection, Mapping

from segkit.errors import UsageError

# Values of `group_by`: the beginning of a pattern that finds the source of an image in its name; no groups by names.
REGEX, NO_GROUPS = "regex:", "none"


def nearest(name: str, known: Collection[str], also_called: Mapping[str, str] | None = None) -> str | None:
    """Return the known name that is spelt most like `name`, or None if none is similar.

    Args:
        name: A name that is not in `known`.
        known: The names that exist.
        also_called: Other words for some of the known names, such as {"encoder": "backbone"}.
    """
    synonyms = {other: ours for other, ours in (also_called or {}).items() if ours in known}
    found = difflib.get_close_matches(name, [*known, *synonyms], n=1)
    return synonyms.get(found[0], found[0]) if found else None


def unknown(what: str, name: str, known: Collection[str], also_called: Mapping[str, str] | None = None) -> UsageError:
    """Return the error for a name that does not exist; it lists the known names and suggests the nearest.

    Args:
        what: The kind of thing, such as "loss".
        name: The name that was given.
        known: The names that exist.
        also_called: See `nearest`.
    """
    near = nearest(name, known, also_called) if isinstance(name, str) else None
    hint = f"; did you mean {near!r}?" if near else "."
    return UsageError(f"unknown {what} {name!r}{hint} Known: {', '.join(known) or 'none'}")


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raise UsageError if `name` is not one of `known`, see `unknown`."""
    if not isinstance(name, str) or name not in known:
        raise unknown(what, name, known)
