"""Data-parallel training: several processes compute the gradient of one (Li et al. 2020, PyTorch Distributed).

Each rank takes its own rows of every global batch, and draws what one process would draw for all of it (see
`randomness.own_rows`), so that the number of ranks changes nothing but the speed. Outside torchrun each function here
is the identity.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from vae_cli.batch import JOINT
from vae_cli.system import randomness, ranks
from vae_cli.system.errors import UserError
from vae_cli.system.interruption import ending
from vae_cli.system.liveness import Watch

T = TypeVar("T")
FOLDER, MEETING = "vae-cli/folder", "vae-cli/meeting"  # keys in torchrun's store
_WRAPPED: weakref.WeakSet[Any] = weakref.WeakSet()  # modules that hold the group of ranks
_watch: Watch | None = None  # of the other ranks, while they are together
LOST = ("connection", "gloo", "nccl", "process group", "peer", "timed out", "socket")


def start(device: torch.device) -> None:
    """Join the other ranks, if there are any: by NCCL on CUDA, by gloo on the CPU."""
    if ranks.count() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    importlib.import_module("torch.distributed.nn")  # later, its functions' defaults would keep the group for ever
    atexit.register(_end)
    global _watch
    _watch = Watch()
    with explain_lost_rank():
        agent = _agent()
        name = "vae-cli" if agent is None else _meeting(agent)
        store = None if agent is None else dist.PrefixStore(name, agent)
        dist.init_process_group(backend, store=store, rank=ranks.rank(), world_size=ranks.count())
        _watch.meet(dist.PrefixStore(f"{name}/life", _client()))
    _share_batches()


def _share_batches() -> None:
    """Make means and draws of a batch those of the rows of all current ranks."""
    JOINT.mean, JOINT.gather, JOINT.alone = mean, gather, count() == 1
    randomness.share(rank(), count())


def _meeting(store: Any) -> str:
    """Return a name that the ranks of this attempt share, and those of no other.

    torchrun's own name for an attempt counts the restarts on each machine, on which machines may disagree. Here the
    first rank proposes a name, and answers each of the others, who each asked under it with a word of their own.
    """
    if ranks.rank() == 0:
        name = f"vae-cli/{uuid.uuid4()}"
        store.set(MEETING, name)
        for other in range(1, ranks.count()):
            store.set(f"{name}/{store.get(f'{name}/{other}').decode()}", "")
        return name
    word = str(uuid.uuid4())
    while True:
        name = store.get(MEETING).decode()
        store.set(f"{name}/{ranks.rank()}", word)
        for _ in range(20):
            if store.check([f"{name}/{word}"]):
                return name
            time.sleep(0.05)


def _agent() -> Any:
    """Return torchrun's own store, which outlives the processes that it starts again; None where there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return _client()


def _client() -> Any:
    """Return a connection of its own to the store that the ranks meet at."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False)


def remember(folder: str) -> None:
    """Store the run's folder for the processes that torchrun may start in place of these."""
    if ranks.count() > 1 and (store := _agent()) is not None:
        store.set(FOLDER, folder)


def remembered() -> str | None:
    """Return the run's folder, stored by the processes that these replace."""
    store = _agent()
    return store.get(FOLDER).decode() if store is not None and store.check([FOLDER]) else None


def part_ways() -> None:
    """Leave the group: from here on each rank is alone."""
    if dist.is_initialized():
        dist.barrier()
        _end()


def _end() -> None:
    """Destroy the group of ranks, and wait for gloo's threads to end.

    Python runs this before it ends, however it ends. A thread of gloo's that frees a tensor later than that is stopped
    by force, which C++ answers with an abort, and torchrun takes for a failure.
    """
    global _watch
    if _watch is not None:
        _watch.end()
        _watch = None
    for wrapper in _WRAPPED:
        wrapper.reducer = wrapper.logger = wrapper.process_group = None
    if dist.is_initialized():
        dist.destroy_process_group()
    _share_batches()
    gc.collect()


def data_parallel(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Return a module whose gradients the ranks average while they are computed; itself where there is one rank."""
    if count() == 1:
        return module
    wrapper = torch.nn.parallel.DistributedDataParallel
    new = "forward_sync_buffers" in signature(wrapper).parameters
    shared: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}  # they agree anyway
    devices: Any = [device] if device.type == "cuda" else None
    wrapped = wrapper(module, device_ids=devices, gradient_as_bucket_view=True, **shared)
    _WRAPPED.add(wrapped)
    return wrapped


def count() -> int:
    """Return N, the number of ranks that work together now."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this rank's number, 0 … N − 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def shared(value: T) -> T:
    """Return rank 0's value (a plain object or tensors) on every rank."""
    if count() == 1:
        return value
    box = [value if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return cast(T, box[0])


def from_first_rank(make: Callable[[], T]) -> T:
    """Return what `make` returns on rank 0, on every rank."""
    return shared(make() if rank() == 0 else cast(T, None))


def from_all_ranks(value: T) -> list[T]:
    """Return the values of all ranks, by rank."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def largest(values: list[float]) -> list[float]:
    """Return, for each of some numbers, the largest that any rank gives; on the host."""
    if count() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


@contextmanager
def one_after_another() -> Iterator[None]:
    """Run the block on the first rank of each machine before the others, which then find what it cached."""
    if count() > 1 and ranks.local_rank() > 0:
        dist.barrier()
    yield
    if count() > 1 and ranks.local_rank() == 0:
        dist.barrier()


@contextmanager
def explain_lost_rank() -> Iterator[None]:
    """Within the block, say in one line that another rank was lost.

    Raises:
        UserError: it was.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if ranks.count() == 1 or isinstance(error, UserError) or not any(word in text for word in LOST):
            raise
        ending()  # the launcher now stops the others, and this one has to say why
        raise UserError("another rank was lost (the launcher's log says which); the last checkpoint is kept") from error


def refuse(reason: str) -> NoReturn:
    """Refuse to train for a reason that every rank has found, and let each say so before the first one ends.

    Raises:
        UserError: always.
    """
    if rank() > 0:
        ranks.say(reason)
    if count() > 1:
        dist.barrier()
    raise ranks.Said(reason) if rank() > 0 else UserError(reason)


class _Mean(torch.autograd.Function):
    """The mean over ranks, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the mean of all ranks' x."""
        return _averaged(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the mean of all ranks' gradients."""
        return _averaged(gradient)


class _Gather(torch.autograd.Function):
    """All ranks' rows, for a loss that each rank computes alike from all of them.

    DistributedDataParallel averages the ranks' gradients: N times those of a rank's own rows, each of which only it
    has, is then their sum, and what each rank computes alike from all rows is the mean of equals.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the rows [N · b, …] of x [b, …]."""
        found = [torch.empty_like(x) for _ in range(count())]
        dist.all_gather(found, x.contiguous())
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return N times the gradient of the own rows."""
        return gradient.chunk(count())[rank()] * count()


def _averaged(x: Tensor) -> Tensor:
    x = x.detach().clone().contiguous()
    dist.all_reduce(x)
    return x / count()


def mean(x: Tensor) -> Tensor:
    """Return the mean over ranks of equal shares' means, with its gradient."""
    return x if count() == 1 else _Mean.apply(x)


def gather(x: Tensor, axis: int = 0) -> Tensor:
    """Return the rows of all ranks along an axis, with the gradient that `_Gather` explains."""
    return x if count() == 1 else _Gather.apply(x.movedim(axis, 0)).movedim(0, axis)
