"""A GPU that is none: tensors with a device of their own, whose numbers lie on the host and are worked out there.

What a program would learn from a real one on a machine without: whether its tensors are on the device that they are
used on, and where it waits for the device. Numbers are real; speed, streams, bfloat16 autocast and CUDA's own branches
are not simulated. Use `DEVICE` after `plug_in()`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "simulated"

ROOT = Path(__file__).parents[2]

Operation = Any
"""Of torch's, as its dispatcher names it."""

aten = torch.ops.aten


class Simulated(Tensor):
    """A tensor of the device; `on_host` holds its numbers."""

    on_host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_host: Tensor) -> Simulated:
        layout = {"strides": on_host.stride(), "storage_offset": on_host.storage_offset(), "dtype": on_host.dtype}
        made: Simulated = Tensor._make_wrapper_subclass(cls, on_host.shape, device=f"{DEVICE}:0", **layout)  # type: ignore[attr-defined]
        made.on_host = on_host
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Operation, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_library = torch.library.Library("_", "IMPL")
_waits: list[list[str]] = []
"""One list for each of the blocks that are being watched, the innermost last."""


def plug_in() -> None:
    """From now on there is such a device. Once in a process, before its first backward.

    Parameters that are moved to it stay the same objects, as between the CPU and CUDA: optimisers hold them already.
    """
    torch.__future__.set_swap_module_params_on_conversion(True)
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module())
    _library.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")


@contextmanager
def waits_for_the_device() -> Iterator[list[str]]:
    """Inside, every wait for what the device has been asked to do: what for, and the file and function that wait.

    Copies to the host, looking at a number, operations whose shapes follow from numbers; and copies from the host that
    are not asked for with non_blocking=True, which CUDA ends by waiting for the stream.
    """
    waits: list[str] = []
    _waits.append(waits)
    try:
        yield waits
    finally:
        _waits.pop()


def _wait(reason: str) -> None:
    packages = [ROOT / name for name in ("rlgns", "agents")]
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
    own = [(file, name) for file, name in frames if any(file.is_relative_to(package) for package in packages)]
    where = f"{own[-1][0].name} {own[-1][1]}" if own else "a test"
    for waits in _waits:
        waits.append(f"{reason} in {where}")


def _run(operation: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do it on the host, as the device would: with tensors of the device only, numbers and indices excepted."""
    leaves, shape = _pytree.tree_flatten((args, dict(kwargs)))
    here = [leaf for leaf in leaves if isinstance(leaf, Simulated)]
    there = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Simulated)]
    host_args, host_kwargs = _pytree.tree_unflatten([getattr(leaf, "on_host", leaf) for leaf in leaves], shape)
    stays = bool(here)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == DEVICE
        host_kwargs["device"] = "cpu"
    packet = operation.overloadpacket
    if packet in (aten._to_copy, aten.copy_):
        stays = _watch_copy(packet, args, kwargs, stays)
    else:
        indices = [index for index in args[1] if index is not None] if packet in INDEXING else []
        _watch_indices(indices)
        if packet in WAITING:
            _wait(packet.__name__)
        if any(tensor.dim() > 0 and all(tensor is not index for index in indices) for tensor in there):
            raise RuntimeError(f"{operation} of tensors on {DEVICE} and on the host: {[t.shape for t in here + there]}")
    known = {id(tensor.on_host): tensor for tensor in here}  # what an operation in place gives back

    def on_device(found: Any) -> Any:
        if not isinstance(found, Tensor):
            return found
        if id(found) in known:
            return known[id(found)]
        return Simulated(found) if stays else found

    return _pytree.tree_map(on_device, operation(*host_args, **host_kwargs))


INDEXING = (aten.index, aten.index_put, aten.index_put_)
WAITING = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2)


def _watch_copy(packet: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], stays: bool) -> bool:
    """Whether the copy is on the device."""
    in_place = packet is aten.copy_
    source, stays = (args[1], isinstance(args[0], Simulated)) if in_place else (args[0], stays)
    non_blocking = kwargs.get("non_blocking") or (in_place and len(args) > 2 and args[2])
    if isinstance(source, Simulated) and not stays:
        _wait("copy to the host")
    elif stays and not isinstance(source, Simulated) and not non_blocking:
        _wait("copy from the host")
    return stays


def _watch_indices(indices: Sequence[Tensor]) -> None:
    if any(not isinstance(index, Simulated) for index in indices):
        _wait("index on the host")
    if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        _wait("index by a mask")
