"""What is a run of a sweep called, and which runs are the same?

A run's identity consists of all its parameters except those that say how it is watched and where it computes. Its
name can name a directory and is made to be read: it lists the parameters that vary, with numbers in six digits. Where
such a name would be ambiguous, a hash of the identity is appended, so that one name never stands for two runs. A run
that already has a name keeps it.
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
"""Length limit of a name: file systems allow 255 bytes, and log files add an ending."""

MACHINE_PARAMETERS = frozenset(
    {"checkpoint_seconds", "keep_checkpoints", "device", "num_threads", "num_torch_threads", "num_parts", "tensorboard"}
)


def is_machine_parameter(name: str) -> bool:
    """Whether a parameter says where a run computes or how it is watched, rather than what it computes."""
    return name in MACHINE_PARAMETERS or name.startswith("wandb")


def canonical(value: Any) -> str:
    """Text that is the same for equal values only: 1 and 1.0 are equal, but True and "1" differ from both."""
    return json.dumps(_normalised(value), sort_keys=True)


def run_identity(parameters: Parameters, varying: Collection[str]) -> str:
    """Text that identifies a run.

    Args:
        parameters: All parameters of the run.
        varying: Names of the parameters that the sweep varies. They count even if they are machine parameters.
    """
    return canonical({n: v for n, v in parameters.items() if n in varying or not is_machine_parameter(n)})


def readable_name(parameters: Parameters, varying: Sequence[str]) -> str:
    """The varying parameters and their values, with numbers in six digits, as a name that can name a directory."""
    words = ",".join(f"{name}={_short(parameters[name])}" for name in varying if name in parameters)
    return re.sub(r"[^\w.,=+-]+", "-", words)[:200] or "run"


def unique_names(
    runs: Sequence[tuple[str, str]], known: Mapping[str, str], taken: Collection[str] = ()
) -> dict[str, str]:
    """Unambiguous names of runs, by identity.

    Args:
        runs: Identity and readable name of each run.
        known: Names that runs already have, by identity. They are kept.
        taken: Names that are in use for any other reason.

    Returns:
        For each identity, the readable name if no other run has it in upper or lower case, else the readable name
        followed by a hash of the identity.
    """
    wanted = Counter(name.casefold() for _, name in runs)
    occupied = {name.casefold() for name in (*known.values(), *taken)}
    names = {}
    for identity, name in runs:
        is_unique = wanted[name.casefold()] == 1 and name.casefold() not in occupied
        fits = is_unique and len(name.encode()) <= MAX_BYTES
        names[identity] = known.get(identity) or (name if fits else _with_hash(name, identity))
    return names


def _with_hash(name: str, identity: str) -> str:
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    shortened = name.encode()[: MAX_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{shortened}-{digest}"


def _normalised(value: Any) -> Any:
    """The value with whole floats as integers and mappings keyed by text, at every depth."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(name): _normalised(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    return value


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
