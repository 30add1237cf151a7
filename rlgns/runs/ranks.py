"""Data-parallel training: the rank of this process, and the collective operations of all ranks.

Several processes ("ranks") train one model. torchrun or srun starts them: one per GPU, or several on a machine without
GPUs. Each rank steps its own environments and holds a complete copy of the model. `broadcast` makes the copies equal at
the start, and `sum_gradients` keeps them equal, because every rank receives the same bits. For `ALONE`, a single
process, all operations are the identity.

A rank that dies ends the others with an error: at once if its machine is alive, else after the timeout of `joined`.
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
    """The rank of this process among the processes that train one model; for a single process, methods do nothing.

    Attributes:
        rank: Number of this process, from 0 to size − 1; rank 0 writes the files.
        size: Number of processes that train the model together.
        local_rank: Number of this process among those on the same machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Read the ranks from the environment of torchrun, or else of a Slurm step that srun started.

        A shell in a Slurm allocation is not a step, so a process started from it is a single process.

        Args:
            environment: Environment variables by name.

        Returns:
            The ranks; `ALONE` if neither torchrun nor srun started this process.

        Raises:
            ValueError: If a variable is missing or has an impossible value.
        """
        if "RANK" in environment:
            names = "RANK", "WORLD_SIZE", "LOCAL_RANK"
        elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
            # an interactive step (salloc) is one task, although SLURM_NTASKS of its allocation may be larger
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
        """Whether this is rank 0, which a single process is, too."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Resolve the name of a device.

        Args:
            name: A device as torch names it; "auto" stands for the GPU of this rank, or for the CPU without GPUs.

        Returns:
            The name of a device that exists.

        Raises:
            ArgumentError: If the device is not available.
        """
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
        """Connect all ranks inside the block: through gloo on the CPU, and through NCCL on GPUs as well.

        The ranks meet on the machine of rank 0, at `store_address`. A process can do this only once.

        Args:
            device: The device of this rank.
            timeout: How long a rank waits for the others, here and in every method, before it fails. It has to be
                longer than one rank ever keeps the others waiting, for instance rank 0 while it writes a checkpoint.

        Raises:
            TimeoutError: If a rank does not arrive in time.
        """
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = self._fresh_store(timeout)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout)
        try:
            self.largest(0)  # no rank leaves before all have arrived; rank 0 would take the store with it
            yield
        finally:
            dist.destroy_process_group()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all trained parameters over ranks, in place and in one message.

        Every rank receives the same bits, and gradients keep their memory format. A missing gradient counts as zeros;
        afterwards every trained parameter has a gradient.

        Args:
            parameters: The model's parameters, the same on every rank.
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
        """The sum of a tensor over ranks, detached from its graph; for a single process, the detached tensor itself."""
        if self.size == 1:
            return tensor.detach()
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors of all ranks in rank order, detached from their graphs.

        Args:
            tensor: The tensor of this rank, of shape [n, …], the same on every rank.

        Returns:
            The concatenation over R ranks, of shape [R·n, …]; for a single process, the detached tensor itself.
        """
        if self.size == 1:
            return tensor.detach()
        local_part = tensor.detach().contiguous()
        parts = [torch.empty_like(local_part) for _ in range(self.size)]
        dist.all_gather(parts, local_part)
        return torch.cat(parts)

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks in rank order; any small object that pickles, such as statistics of episodes."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def broadcast(self, parameters: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 to all ranks, in place; memory formats are kept."""
        for parameter in parameters if self.size > 1 else ():
            values = parameter.detach().contiguous()
            dist.broadcast(values, src=0)
            parameter.copy_(values)

    def largest(self, number: int) -> int:
        """The largest of the numbers of all ranks: for instance the number of a stop signal, where 0 means none."""
        if self.size == 1:
            return number
        maximum = torch.tensor(number)
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
        return int(maximum)

    def _fresh_store(self, timeout: timedelta) -> PrefixStore:
        """Meet the other ranks in a key-value store, under a prefix that is new in every attempt.

        torch's own rendezvous `env://` can fail after a restart: it writes its keys into torchrun's store without a
        prefix for the attempt, and torchrun keeps one store over restarts. The keys of a dead attempt are still there,
        so a rank of the new attempt can read the stale address of a dead peer and wait for it until the timeout.
        TORCHELASTIC_RESTART_COUNT cannot serve as the prefix, because it may differ between machines.

        So rank 0 draws a random prefix and publishes it as "first". Every other rank draws a random token, writes it to
        `<prefix>/<rank>`, and accepts the prefix only once rank 0 has answered by writing the token as a key. A stale
        prefix is never answered, because its rank 0 is dead; the other ranks keep reading "first" until rank 0 of this
        attempt has replaced it.

        Args:
            timeout: How long a rank waits for the others.

        Returns:
            The store under the prefix of this attempt.

        Raises:
            TimeoutError: If a rank does not arrive in time.
        """
        host, port = store_address(os.environ)
        serves = self.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = TCPStore(host, port, is_master=serves, wait_for_workers=False, timeout=timeout)
        return self._announce(store, timeout) if self.is_first else self._await_answer(store, timeout)

    def _announce(self, store: TCPStore, timeout: timedelta) -> PrefixStore:
        """On rank 0: publish a new prefix, and answer every other rank."""
        prefix = uuid.uuid4().hex
        store.set("first", prefix)
        for rank in range(1, self.size):
            try:
                token = store.get(f"{prefix}/{rank}").decode()
                store.set(token, "welcome")
            except dist.DistStoreError as error:
                raise TimeoutError(f"rank {rank} of {self.size} did not come within {timeout}") from error
        return PrefixStore(prefix, store)

    def _await_answer(self, store: TCPStore, timeout: timedelta) -> PrefixStore:
        """On other ranks: offer a token under the published prefix until rank 0 answers it."""
        token = prefix = uuid.uuid4().hex
        deadline = time.monotonic() + timeout.total_seconds()
        while not store.check([token]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank 0 did not answer rank {self.rank} of {self.size} within {timeout}")
            if store.check(["first"]):
                prefix = store.get("first").decode()
                store.set(f"{prefix}/{self.rank}", token)
            time.sleep(0.05)
        return PrefixStore(prefix, store)


ALONE = Ranks()
"""A single process."""


def store_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """The host and port of rank 0, where all ranks meet.

    They are MASTER_ADDR and MASTER_PORT, or else follow from Slurm's variables: the host is the first of the step, and
    the port is derived from the numbers of job and step.

    Args:
        environment: Environment variables by name.

    Raises:
        ValueError: If neither is set.
    """
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    host = environment.get("MASTER_ADDR") or first_host(nodes)
    if "MASTER_PORT" in environment or "SLURM_STEP_ID" not in environment:
        return host, _integer(environment, "MASTER_PORT", 1, 1 << 16)
    job, step = (_integer(environment, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return host, 10_000 + (17 * job + step) % 20_000


def first_host(node_list: str) -> str:
    """The first host of a node list in Slurm's notation: node01 of "node[01-03,7],other"."""
    first = re.match(r"((\[\d[^]]*\]|[^,[])+)(,|$)", node_list)
    if first is None:
        raise ValueError(f"no host can be read from the node list '{node_list}'; set MASTER_ADDR to rank 0's host")
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", first[1])


def _integer(environment: Mapping[str, str], name: str, least: int, below: float = math.inf) -> int:
    """The integer value of a variable; ValueError if it is not set, not an integer, or outside [least, below)."""
    text = environment.get(name, "")
    if re.fullmatch(r"-?\d+", text) and least <= (value := int(text)) < below:
        return value
    raise ValueError(f"{name}={text} is not an integer in [{least}, {below}); start with torchrun or srun, or unset it")
