"""Packed: a list that loader workers share."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Packed(Sequence, Generic[T]):
    """Objects kept as bytes in one array, made anew each time that one is asked for.

    To read a Python object is to write its reference count, so that each forked worker would come to own
    a copy of a list of them, page by page, as the epochs go on. An array's content is only read.
    """

    def __init__(self, values: Iterable[T]) -> None:
        parts = [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values]
        self._ends = np.cumsum([0, *map(len, parts)])
        self._bytes = np.frombuffer(b"".join(parts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> T:
        index = range(len(self))[index]
        return pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]])
