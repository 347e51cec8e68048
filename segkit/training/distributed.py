"""Ranks: this process among the processes that torchrun starts."""

import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from segkit.compat import data_parallel, leave_process_group
from segkit.errors import Interrupted, RanksError, UsageError
from segkit.models import Segmenter

if TYPE_CHECKING:
    from torch.distributed import Store

_log = logging.getLogger(__name__)
TIMEOUT = timedelta(minutes=30)  # how long to wait for the slowest process: start, validation images, a slow disk
STOP = "stop"  # key of the store
CHECK_EVERY = 1.0  # seconds between two checks for a request to stop, while a process waits for others
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among the processes that work together; a single process never uses torch.distributed.

    All processes must call the same methods in the same order. Everything that they must agree on is decided here.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
        count_here: Number of processes on this machine.
        local_rank: Number of this process among the processes on this machine, from 0.
        store: Holds messages that one process leaves for the others.
    """

    rank: int = 0
    count: int = 1
    count_here: int = 1
    local_rank: int = 0
    store: "Store | None" = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Iterable[Result]) -> Iterator[Result]:
        """Return this process's share of the items: every `count`-th one."""
        return islice(items, self.rank, None, self.count)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, on the CPU and in the tensor's dtype."""
        if self.count == 1:
            return x
        total = x.to("cpu", copy=True)
        dist.all_reduce(total)
        return total

    def sum_numbers(self, *numbers: float) -> list[float]:
        """Return the sum over all processes of each number, in double precision."""
        if self.count == 1:
            return list(numbers)
        return self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all processes, in all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def gather_on_first(self, values: list[Result]) -> list[Result]:
        """Return the joined lists of all processes in the first one, and an empty list in the others."""
        if self.count == 1:
            return values
        parts: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(values, parts)
        return [value for part in parts or [] for value in part]

    def on_first(self, act: Callable[[], Result]) -> Result:
        """Call `act` in the first process while the others wait; return its result, or raise its error, in all."""
        if self.count == 1:
            return act()
        box: list[Any] = [None, None]  # result, error
        if self.is_first:
            try:
                box[0] = act()
            except Exception as error:
                dist.broadcast_object_list([None, _portable(error)])
                raise
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise _reported_elsewhere(box[1])
        return box[0]

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise an error of one process in all of them, at the end of the block. Inside they do not communicate."""
        error = None
        try:
            yield
        except Exception as raised:
            if self.count == 1:
                raise
            error = raised
        errors = self.gather(None if error is None else _portable(error))
        first = next((rank for rank, one in enumerate(errors) if one is not None), None)
        if first is not None:
            raise error if first == self.rank else _reported_elsewhere(errors[first])

    @contextmanager
    def stopping_together(self, check_stop: Callable[[], None] | None = None) -> Iterator[None]:
        """Raise Interrupted in all processes if it is raised in one, at the end of the block.

        Inside the block the processes do not communicate, except by `check_between`.

        Args:
            check_stop: Called by `check_between`, each second while this process waits for others at the end of the
                block. If it raises Interrupted, the processes that are still in the block do not finish it.
        """
        number = 0
        try:
            yield
        except Interrupted as stop:
            if self.count == 1:
                raise
            number = stop.number
        if self.count > 1:
            number = self._largest(number, check_stop)
        if number:
            if self.is_first and self.store is not None:
                self.store.delete_key(STOP)
            raise Interrupted(number)

    def check_between(self, check_stop: Callable[[], None]) -> None:
        """Call `check_stop` within `stopping_together`; if it raises Interrupted in one process, so does the next call
        in every other process.

        Without this, the other processes would first finish all their work in the block.
        """
        try:
            check_stop()
        except Interrupted as stop:
            if self.store is not None:
                self.store.set(STOP, str(int(stop.number)))
            raise
        if self.store is not None and self.store.check([STOP]):
            raise Interrupted(int(self.store.get(STOP)))

    def _largest(self, number: int, check_stop: Callable[[], None] | None) -> int:
        """Return the largest number of all processes; while waiting, call `check_between(check_stop)` each second.

        A plain exchange would wait in torch, where Python handles no signal.
        """
        largest = torch.tensor(number)
        exchange = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)
        next_check = time.monotonic() + CHECK_EVERY
        while not exchange.is_completed():
            time.sleep(0.001)
            if check_stop is not None and time.monotonic() > next_check:
                with suppress(Interrupted):
                    self.check_between(check_stop)
                next_check = time.monotonic() + CHECK_EVERY
        exchange.wait()  # raises the error of an exchange that failed
        return int(largest)

    def wrap(self, model: nn.Module, heads: Collection[str] = ()) -> nn.Module:
        """Return the model with gradients that are averaged over all processes in the backward pass.

        Call it again if other parameters learn.

        Args:
            model: The model, or its compiled form.
            heads: The auxiliary heads that are trained: `aux_head`, `image_head`.
        """
        if self.count == 1:
            return model
        return data_parallel(model, find_unused_parameters=has_idle_parameters(model, heads))

    def sync_gradients(self, wrapped: nn.Module, *, now: bool) -> AbstractContextManager:
        """Return a context for a backward pass; unless `now`, gradients are only added up in each process."""
        return nullcontext() if now or self.count == 1 else wrapped.no_sync()

    @torch.no_grad()
    def share_buffers(self, *modules: nn.Module) -> None:
        """Copy the buffers of the first process, such as the statistics of batch norms, to all processes."""
        if self.count == 1:
            return
        buffers = [buffer for module in modules for buffer in module.buffers() if buffer.numel()]
        parts = [buffer.flatten().view(torch.uint8) for buffer in buffers]
        if not parts:
            return
        joined = torch.cat(parts)
        dist.broadcast(joined, 0)
        for buffer, part in zip(buffers, joined.split([len(part) for part in parts]), strict=True):
            buffer.copy_(part.clone().view(buffer.dtype).view(buffer.shape))


ALONE = Ranks()


@contextmanager
def ranks_of_torchrun(device: str | None = "auto", timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Join the processes that torchrun's environment variables describe; unless WORLD_SIZE > 1, this is the only one.

    Args:
        device: Name of the device on which the processes train one model: on GPUs each process uses the GPU of its
            local rank as the current one, and tensors on GPUs are exchanged by NCCL. None if the processes exchange
            only Python objects, and choose their devices themselves.
        timeout: How long to wait for the slowest process.

    Raises:
        RanksError: Another process has ended or does not answer.
        UsageError: Processes cannot share the device, or there are not enough GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    rank, count, local_rank, count_here = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    on_gpus = device is not None and _use_gpus(device, count_here)
    if on_gpus:
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    store = _rendezvous_store()
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    is_broken = False
    try:
        name = [uuid.uuid4().hex]  # names a new part of the store, which may have messages of earlier processes
        dist.broadcast_object_list(name)
        yield Ranks(rank, count, count_here, local_rank, dist.PrefixStore(name[0], store))
    except RuntimeError as error:
        is_broken = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not is_broken:
            raise
        raise RanksError(
            f"process {rank} of {count} cannot continue: another process has ended or does not answer, see its message"
        ) from error
    finally:
        leave_process_group(is_broken=is_broken)


def _rendezvous_store() -> "Store":
    """Return the store with the processes' addresses; each start of the processes has its own.

    torchrun keeps its store when it restarts processes, so that a process may find the address of one that has ended
    (PyTorch issues 135712 and 167288). On one machine the number of the start distinguishes them. On several machines
    that number differs; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun use a new store.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def share_batch_norms(model: nn.Module, setting: str, device: torch.device, ranks: Ranks = ALONE) -> nn.Module:
    """Make batch norms compute their training statistics over all processes; weights and names stay the same.

    Args:
        model: The model, already on `device`.
        setting: `auto` (on for GPUs), `on` or `off`.
        device: The device; torch has synchronised batch norms only for CUDA.
        ranks: The processes.

    Returns:
        The model, with other batch norm modules if they are synchronised.
    """
    if setting not in ("auto", "on", "off"):
        raise UsageError(f"unknown `sync_bn` {setting!r}, expected auto, on or off")
    if ranks.count == 1 or setting == "off":
        return model
    if device.type != "cuda":
        if setting == "on" and ranks.is_first:
            _log.warning(
                "`sync_bn` needs CUDA and is off on %s: each process computes its own batch statistics", device
            )
        return model
    return convert_sync_batchnorm(model)


def _use_gpus(device: str, processes: int) -> bool:
    """Return whether each process trains on a GPU.

    Raises:
        UsageError: The processes cannot share the device, or there are not enough GPUs.
    """
    if device.startswith("mps"):
        raise UsageError(f"`device={device}` trains in one process; start the training without torchrun")
    if device.startswith("cuda:"):
        raise UsageError(
            f"`device={device}` is one GPU; under torchrun use `device=cuda`, so that each process takes its own"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return False
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise UsageError(
            f"torchrun starts {processes} processes, but this machine has only {gpus} GPUs; "
            f"start torchrun with --nproc-per-node {gpus}"
        )
    return True


def has_idle_parameters(model: nn.Module, heads: Collection[str] = ()) -> bool:
    """Return whether some learnable parameters do not contribute to the outputs, for example of unused features.

    Costs one forward and backward pass of the smallest image.

    Args:
        model: The model, or its compiled form.
        heads: The auxiliary heads that are trained: `aux_head`, `image_head`.
    """
    model = getattr(model, "_orig_mod", model)  # the model inside a compiled one
    if not isinstance(model, Segmenter):
        return False
    extras = [name for name in ("aux_head", "image_head") if getattr(model, name) is not None]
    if set(extras) - set(heads):
        return True
    is_extra = {id(parameter) for name in extras for parameter in getattr(model, name).parameters()}
    learning = [p for p in model.parameters() if p.requires_grad and id(p) not in is_extra]
    was_training = model.training
    model.eval()  # a pass in training mode would change statistics and random states
    shape = (1, model.backbone.channels[0], *model.backbone.size_multiple)
    images = torch.zeros(shape, device=learning[0].device)
    gradients = torch.autograd.grad(model(images).sum(), learning, allow_unused=True)
    model.train(was_training)
    return any(gradient is None for gradient in gradients)


def _portable(error: Exception) -> Exception:
    """Return the error, or one with the same message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _reported_elsewhere(error: Exception) -> Exception:
    """Mark an error of another process, which reports it, so that this process ends silently."""
    error.is_reported = True
    return error
