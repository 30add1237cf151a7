"""Which of several processes that train one model is this, and how do they add, share and agree?

The processes ("ranks") are started by torchrun or by srun, one a GPU, or several a machine without one. Each plays in
environments of its own and holds a whole copy of the model: `broadcast` makes the copies equal at the start, and
`sum_gradients` keeps them so, because every rank receives the same bits. For `ALONE`, one process, all do nothing.

A rank that dies ends the others with an error, at once if its machine lives, else after the timeout of `joined`.
"""

from __future__ import annotations

import math
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported within a group it would keep it, whose threads abort the exit
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from rlgns.runs.arguments import Argument, ArgumentError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is; alone, every method is the identity.

    rank        0 … size − 1; rank 0 writes the files
    size        processes that train the model together
    local_rank  the same among those on this machine: the GPU that it uses
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """The ranks that torchrun, or else a step of srun, started (not a shell in an allocation); alone under neither.

        Raises ValueError on values that cannot be.
        """
        if "RANK" in environment:
            names = "RANK", "WORLD_SIZE", "LOCAL_RANK"
        elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
            # an interactive step (salloc) keeps SLURM_NTASKS of its allocation, and is one task
            size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
            names = "SLURM_PROCID", size_name, "SLURM_LOCALID"
        elif (size := environment.get("WORLD_SIZE", "1")) == "1":
            return cls()
        else:
            raise ValueError(f"WORLD_SIZE={size} is set but RANK is not; start with torchrun, or unset WORLD_SIZE")
        num_ranks = _integer(environment, names[1], 1)
        local_rank = _integer(environment, names[2], 0, num_ranks) if names[2] in environment else 0
        return cls(_integer(environment, names[0], 0, num_ranks), num_ranks, local_rank)

    @property
    def is_first(self) -> bool:
        """True for rank 0, and alone."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of a name; "auto" is each rank's own GPU, or the CPU. ValueError if it is not there."""
        if name == "auto":
            if not torch.cuda.is_available():
                return "cpu"
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
            return f"cuda:{torch.cuda.current_device()}"
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError):
            use = Argument("'auto' or 'cpu'", "--device auto or cpu")
            raise ArgumentError(f"device {name} is not available here; use ", use) from None
        return name

    @contextmanager
    def joined(self, device: torch.device, timeout: timedelta = timedelta(minutes=5)) -> Iterator[None]:
        """Inside, all ranks are in touch: on the CPU by gloo, on a GPU by NCCL as well. Once in the life of a process.

        timeout  of a rank that waits for the others, here and in every method, before it gives up with an error; longer
                 than one rank ever keeps the others waiting (rank 0 while it writes a checkpoint, say)

        Raises TimeoutError if a rank does not come. They meet on rank 0's machine, at `store_address`.
        """
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = self._fresh_store(timeout)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout)
        try:
            self.largest(0)  # none leaves, and rank 0 not with the store, before all have come
            yield
        finally:
            dist.destroy_process_group()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Σ over ranks of every trained parameter's gradient, in place, in one message; no gradient counts as zeros.

        Every rank gets the same bits, gradients keep their memory format, and every trained parameter has one after.
        """
        trained = [p for p in parameters if p.requires_grad]
        if self.size == 1 or not trained:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        totals = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, gradient, total in zip(trained, gradients, totals, strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient))

    def sum(self, tensor: Tensor) -> Tensor:
        """Σ over ranks, without a graph; alone, the tensor itself."""
        if self.size == 1:
            return tensor.detach()
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        """[R·n, …] of every rank's [n, …] in rank order, of equal shapes, without a graph; alone, the tensor itself."""
        if self.size == 1:
            return tensor.detach()
        own = tensor.detach().contiguous()
        everyones = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyones, own)
        return torch.cat(everyones)

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value in rank order, whatever pickles; for small things such as statistics of episodes."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def broadcast(self, parameters: Iterable[Tensor]) -> None:
        """Rank 0's values to all, in place; memory formats are kept."""
        for parameter in parameters if self.size > 1 else ():
            values = parameter.detach().contiguous()
            dist.broadcast(values, src=0)
            parameter.copy_(values)

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers: the signal that asks one of them to stop, say, and 0 if none is."""
        if self.size == 1:
            return number
        of_all = torch.tensor(number)
        dist.all_reduce(of_all, dist.ReduceOp.MAX)
        return int(of_all)

    def _fresh_store(self, timeout: timedelta) -> PrefixStore:
        """The store where the ranks find each other, under a name that rank 0 chooses and answers the others by.

        For torchrun keeps one store through its restarts, and machines may differ in TORCHELASTIC_RESTART_COUNT.
        """
        host, port = store_address(os.environ)
        serves = self.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = TCPStore(host, port, is_master=serves, wait_for_workers=False, timeout=timeout)
        name = first = uuid.uuid4().hex
        if self.is_first:
            store.set("first", name)
            for rank in range(1, self.size):
                try:
                    store.set(store.get(f"{name}/{rank}").decode(), "welcome")
                except dist.DistStoreError as error:
                    raise TimeoutError(f"rank {rank} of {self.size} did not come within {timeout}") from error
            return PrefixStore(name, store)
        deadline = time.monotonic() + timeout.total_seconds()
        while not store.check([name]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank 0 did not answer rank {self.rank} of {self.size} within {timeout}")
            if store.check(["first"]):
                first = store.get("first").decode()
                store.set(f"{first}/{self.rank}", name)
            time.sleep(0.05)
        return PrefixStore(first, store)


ALONE = Ranks()


def store_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port where rank 0 is met: MASTER_ADDR and MASTER_PORT, else made up from Slurm's variables.

    The host is the first of the step's, the port follows from the numbers of job and step. ValueError if none is set.
    """
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    host = environment.get("MASTER_ADDR") or first_host(nodes)
    if "MASTER_PORT" in environment or "SLURM_STEP_ID" not in environment:
        return host, _integer(environment, "MASTER_PORT", 1, 1 << 16)
    job, step = (_integer(environment, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return host, 10_000 + (17 * job + step) % 20_000


def first_host(node_list: str) -> str:
    """The first host of a list as Slurm writes it: node01 of "node[01-03,7],other"."""
    first = re.match(r"((\[\d[^]]*\]|[^,[])+)(,|$)", node_list)
    if first is None:
        raise ValueError(f"no host can be read from the node list '{node_list}'; set MASTER_ADDR to rank 0's host")
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", first[1])


def _integer(environment: Mapping[str, str], name: str, least: int, below: float = math.inf) -> int:
    """The value of a variable; ValueError if it is not set, no integer, or out of [least, below)."""
    text = environment.get(name, "")
    if re.fullmatch(r"-?\d+", text) and least <= (value := int(text)) < below:
        return value
    raise ValueError(f"{name}={text} is no integer in [{least}, {below}); start with torchrun or srun, or unset it")
