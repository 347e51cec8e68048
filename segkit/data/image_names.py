"""ImageNames: the files that names from another system mean."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PureWindowsPath

from segkit.data.images import list_images

HINTS = 3  # files that a hint names


class ImageNames:
    """Find the images below a folder by names that are spelt in another way.

    Such names have backslashes, other capitals (`.JPG` for `.jpg`), accents as another system writes them, or begin
    with the folders of another machine.

    Args:
        root: The folder; its files are listed when the first name is looked up.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, list[str]] | None = None
        self._by_last_part: dict[str, list[str]] = defaultdict(list)

    def find(self, names: Sequence[str], taken: Collection[str] = ()) -> list[str | None]:
        """Return for each name the only file that it can mean, relative to the folder, or None.

        A relative name must match the whole path of the file, an absolute name must end with it. If two different names
        can mean the same file, neither gets it.

        Args:
            names: The names for which there is no file.
            taken: Names of the images whose files exist.
        """
        candidates = {name: self._candidates(name) for name in dict.fromkeys(names)}
        meant_by: dict[str, set[str]] = defaultdict(set)
        for name in taken:
            meant_by[os.path.normpath(name)].add(name)
        for name, files in candidates.items():
            for file in files:
                meant_by[file].add(name)
        only = {name: files[0] for name, files in candidates.items() if len(files) == 1}
        return [only[name] if name in only and len(meant_by[only[name]]) == 1 else None for name in names]

    def hint(self, name: str) -> str:
        """Return the rest of a sentence on a name that `find` did not find: which files have it without its folders.

        It is "" if none has.
        """
        only = self._candidates(name)
        if len(only) == 1:
            return f"; the folder has {only[0]}, but another image of the list can mean this file, too: list it once"
        self._index()
        files = self._by_last_part.get("".join(_parts(name)[-1:]), [])
        if not files:
            return ""
        shown = ", ".join(sorted(files)[:HINTS]) + (" ..." if len(files) > HINTS else "")
        return f"; the folder has {shown}" + (", and it is not clear which one is meant" if len(files) > 1 else "")

    def _candidates(self, name: str) -> list[str]:
        if ".." in _parts(name):
            return []
        return [file for end in _ends(name) for file in self._index().get(end, [])]

    def _index(self) -> dict[str, list[str]]:
        if self._files is None:
            self._files = defaultdict(list)
            for path in list_images(self.root) if self.root.is_dir() else []:
                file = path.relative_to(self.root).as_posix()
                parts = _parts(file)
                self._files["/".join(parts)].append(file)
                self._by_last_part[parts[-1]].append(file)
        return self._files


def same_files(names: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs (i, j) for which `names[i]` and `others[j]` can mean one file, without looking at the disk."""
    with_path: dict[str, set[int]] = defaultdict(set)
    with_end: dict[str, set[int]] = defaultdict(set)
    for i, name in enumerate(names):
        with_path[_ends(name)[0]].add(i)
        for end in _ends(name):
            with_end[end].add(i)
    pairs = []
    for j, name in enumerate(others):
        path, *_ = ends = _ends(name)
        pairs += [(i, j) for i in sorted(with_end.get(path, set()).union(*(with_path.get(e, ()) for e in ends)))]
    return pairs


def is_absolute(name: str) -> bool:
    """Return whether a name is an absolute path on any system."""
    return os.path.isabs(name) or PureWindowsPath(name).is_absolute()


def _ends(name: str) -> list[str]:
    """Return the paths below a folder that a name can mean, in one spelling: the name or, if absolute, its ends."""
    parts = _parts(name)
    return ["/".join(parts[start:]) for start in range(len(parts) if is_absolute(name) else 1)]


def _parts(name: str) -> list[str]:
    """Return the folders and the file of a name, in one spelling: small letters, accents as one character."""
    spelt = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return [part for part in re.split(r"[\\/]+", spelt) if part not in ("", ".")]
