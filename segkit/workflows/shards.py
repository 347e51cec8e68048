"""A share of the work for each process that torchrun starts."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple

WAIT = timedelta(days=7)  # for the slowest process


class Shard(NamedTuple):
    """This process's share: every `count`-th image, from the `rank`-th on."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Iterable[Any]) -> Iterator[Any]:
        """This process's items."""
        return islice(items, self.rank, None, self.count)

    def from_first(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gather(self, values: list[Any]) -> list[Any]:
        """The values of all processes, in the first one; what came from the others is empty elsewhere."""
        if self.count == 1:
            return values
        import torch.distributed as dist

        parts = [None] * self.count if self.is_first else None
        dist.gather_object(values, parts)
        return [value for part in parts for value in part] if self.is_first else []


@contextmanager
def shard_of_this_process() -> Iterator[Shard]:
    """The share by torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK; everything without them."""
    rank, count, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if count == 1:
        yield Shard()
        return
    import torch.distributed as dist

    from segkit.compat import leave_process_group

    dist.init_process_group("gloo", timeout=WAIT)
    try:
        yield Shard(rank, count, local)
    finally:
        leave_process_group()
