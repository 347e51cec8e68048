"""Ranks: this process among those that torchrun starts to train one model together."""

import logging
import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from segkit.compat import data_parallel, leave_process_group
from segkit.errors import RanksError, UsageError
from segkit.models import Segmenter
from segkit.training.signals import Interrupted

if TYPE_CHECKING:
    from torch.distributed import Store

_log = logging.getLogger(__name__)
TIMEOUT = timedelta(minutes=30)  # for the slowest process: its start, its validation images, the disk of the first
STOP = "stop"  # key of the store
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model together; for one alone, nothing is asked of torch.distributed.

    What all of them must decide alike is decided here. All call the same methods in the same order.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
        count_here: Number of processes on this machine.
        store: Where they leave word for each other without meeting.
    """

    rank: int = 0
    count: int = 1
    count_here: int = 1
    store: "Store | None" = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all processes' tensors, on the CPU and in the tensor's type."""
        if self.count == 1:
            return x
        import torch.distributed as dist

        total = x.to("cpu", copy=True)
        dist.all_reduce(total)
        return total

    def gather(self, value: Result) -> list[Result]:
        """The values of all processes, in all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def on_first(self, act: Callable[[], Result]) -> Result:
        """Has the first process act while the others wait; gives its result, or raises its error, in all of them."""
        if self.count == 1:
            return act()
        import torch.distributed as dist

        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = act()
            except Exception as error:
                dist.broadcast_object_list([None, _portable(error)])
                raise
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise _told_elsewhere(box[1])
        return box[0]

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """An error in one process is an error in all, at the end of the block, in which they do not meet."""
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
            raise error if first == self.rank else _told_elsewhere(errors[first])

    @contextmanager
    def stopping_together(self) -> Iterator[None]:
        """Where the block is Interrupted in one process, it is in all, at its end; in it they do not meet."""
        number = 0
        try:
            yield
        except Interrupted as stop:
            if self.count == 1:
                raise
            number = stop.number
        number = max(self.gather(number))
        if number:
            if self.is_first and self.store is not None:
                self.store.delete_key(STOP)
            raise Interrupted(number)

    def check_between(self, check_stop: Callable[[], None]) -> None:
        """`check_stop`, within `stopping_together`: where it is Interrupted in one process, all are at their next call.

        Without it those that are not would do all that the block has for them before they meet.
        """
        try:
            check_stop()
        except Interrupted as stop:
            if self.store is not None:
                self.store.set(STOP, str(int(stop.number)))
            raise
        if self.store is not None and self.store.check([STOP]):
            raise Interrupted(int(self.store.get(STOP)))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The forward pass whose gradients, on the way back, become the mean over all processes.

        To be wrapped anew when other parameters learn.
        """
        if self.count == 1:
            return model
        return data_parallel(model, find_unused_parameters=has_idle_parameters(model))

    def holding_back(self, wrapped: nn.Module, hold: bool) -> AbstractContextManager:
        """While it is open and `hold` is true, gradients add up in each process by itself."""
        return wrapped.no_sync() if hold and self.count > 1 else nullcontext()

    @torch.no_grad()
    def share_buffers(self, *modules: nn.Module) -> None:
        """Gives all processes the buffers of the first one, such as the statistics of its batch norms."""
        if self.count == 1:
            return
        import torch.distributed as dist

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
def ranks_of_torchrun(device: str = "auto") -> Iterator[Ranks]:
    """Joins the processes by the variables that torchrun sets; where WORLD_SIZE is not above 1, there is one alone.

    On GPUs, each process has the one of its LOCAL_RANK as its current one.

    Args:
        device: Where the model is going to be, by name; GPUs talk by NCCL, everything else by gloo.

    Raises:
        RanksError: another process has ended or does not answer.
        ValueError: the device is none that processes can share, or there are not enough GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    import torch.distributed as dist

    rank, count, local_rank, count_here = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    on_gpus = _on_gpus(device, count_here)
    if on_gpus:
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    store = _store()
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    try:
        yield Ranks(rank, count, count_here, _new_store(store))
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        raise RanksError(
            f"process {rank} of {count} cannot go on: another one has ended or does not answer, see its message"
        ) from error
    finally:
        leave_process_group()


def _store() -> "Store":
    """Where the processes find each other's addresses; never those of a start before this one.

    torchrun keeps its store through restarts, so that a process may be led to one that has ended (PyTorch issues
    135712 and 167288). On one machine the number of the start tells them apart. On several it is not the same
    everywhere; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has torchrun do without.
    """
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _new_store(store: "Store") -> "Store":
    """A part of the store that is empty, and the same in all processes; the store may outlive them."""
    import torch.distributed as dist

    name = [uuid.uuid4().hex]
    dist.broadcast_object_list(name)
    return dist.PrefixStore(name[0], store)


def share_batch_norms(model: nn.Module, setting: str, device: torch.device, ranks: Ranks = ALONE) -> nn.Module:
    """The model whose batch norms, in training, take their statistics over all processes; weights and names stay.

    Args:
        model: On `device` already.
        setting: `auto` for GPUs alone, `on`, or `off`.
        device: Where the model is; torch has synchronised batch norms for CUDA alone.
        ranks: The processes.
    """
    if setting not in ("auto", "on", "off"):
        raise UsageError(f"unknown sync_bn {setting!r}, expected auto, on or off")
    if ranks.count == 1 or setting == "off":
        return model
    if device.type != "cuda":
        if setting == "on" and ranks.is_first:
            _log.warning(
                "`sync_bn` needs CUDA and is off on %s: each process computes its own batch statistics", device
            )
        return model
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def _on_gpus(device: str, processes: int) -> bool:
    if device.startswith("mps"):
        raise UsageError(f"--device {device} trains in one process; start train.py without torchrun")
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} is one GPU; under torchrun give --device cuda, and each process takes one")
    if device == "cpu" or not torch.cuda.is_available():
        return False
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise UsageError(
            f"torchrun starts {processes} processes on a machine with GPUs for {gpus}; give it --nproc-per-node {gpus}"
        )
    return True


def has_idle_parameters(model: nn.Module) -> bool:
    """Whether some that may learn have no part in the output: of heads beside it, or of features that it leaves out."""
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    if not isinstance(model, Segmenter):
        return False
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.eval()  # leaves statistics and random states alone
    shape = (1, model.backbone.channels[0], *model.backbone.size_multiple)
    images = torch.zeros(shape, device=learning[0].device)
    gradients = torch.autograd.grad(model(images).sum(), learning, allow_unused=True)
    model.train(was_training)
    return any(gradient is None for gradient in gradients)


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _told_elsewhere(error: Exception) -> Exception:
    """The error of another process, which reports it; this one only ends."""
    error.is_reported = True
    return error


def _is_of_connection(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)
