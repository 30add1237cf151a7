"""What is a run of a sweep called, and which runs are the same?

A run's identity is all of its parameters, except how it is watched and where it computes. Its name, fit for a
directory, is made to be read: of the parameters that vary, numbers in six digits. Where that is ambiguous a hash of the
identity follows, so that a name never stands for two runs, and what is known by a name already keeps it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Parameters = Mapping[str, Any]

MAX_BYTES = 200
"""Of a name: file systems allow 255, and logs add an ending."""

MACHINE = frozenset({"checkpoint_seconds", "device", "num_threads", "num_torch_threads", "num_parts"})


def is_of_machine(name: str) -> bool:
    """Whether a parameter says where a run computes or how it is watched, rather than what it is."""
    return name in MACHINE or name.startswith("wandb")


def canonical(value: Any) -> str:
    """A text that is the same for equal values only; 1 and 1.0 are equal, True and "1" are others."""
    return json.dumps(_plain(value), sort_keys=True)


def identity(parameters: Parameters, varying: Collection[str]) -> str:
    """What makes a run the run it is; parameters of the machine count where the sweep varies them."""
    return canonical({name: v for name, v in parameters.items() if name in varying or not is_of_machine(name)})


def readable_name(parameters: Parameters, varying: Sequence[str]) -> str:
    """The name where it is unambiguous: varying parameters, numbers in six digits, fit for a directory."""
    words = ",".join(f"{name}={_short(parameters[name])}" for name in varying if name in parameters)
    return re.sub(r"[^\w.,=+-]+", "-", words)[:200] or "run"


def unique_names(
    runs: Sequence[tuple[str, str]], known: Mapping[str, str], taken: Collection[str] = ()
) -> dict[str, str]:
    """Names of runs by identity.

    Args:
        runs: Identity and readable name of each.
        known: Names by identity that runs have already; they stay.
        taken: Names that are others' for another reason.

    Returns:
        The readable name where no other run has it, in any case of letters; else it and a hash of the identity.
    """
    wanted = Counter(name.casefold() for _, name in runs)
    occupied = {name.casefold() for name in (*known.values(), *taken)}
    names = {}
    for one, name in runs:
        alone = wanted[name.casefold()] == 1 and name.casefold() not in occupied and len(name.encode()) <= MAX_BYTES
        names[one] = known.get(one) or (name if alone else _with_hash(name, one))
    return names


def _with_hash(name: str, identity: str) -> str:
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    cut = name.encode()[: MAX_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{cut}-{digest}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
