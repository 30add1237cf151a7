"""Checkpoints that are whole or not there, and that never run code when they are read.

Only tensors and plain values are stored, so that `torch.load(weights_only=True)` reads them; an archive from elsewhere
that holds anything else is refused, not unpickled.
"""

from __future__ import annotations

import os
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = "rlgns checkpoint 1"

State = dict[str, Any]


def save_checkpoint(path: Path, state: State) -> None:
    """Write a checkpoint beside the old one, bring it to disk, then put it in its place.

    Raises OSError that names the file, the old checkpoint untouched, for instance on a full disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
            raise
        raise OSError(None, f"could not be written ({str(error).splitlines()[0]})", str(path)) from None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> State:
    """The state that was saved, tensors on `device`.

    Raises ValueError in one line if the file is missing, damaged, or not a checkpoint of this project.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders aloud at foreign files, which are refused below
            state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; the run stopped before its first checkpoint, start it anew") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        refused = "weights" in str(error).lower() and "only" in str(error).lower()
        why = "holds more than tensors and plain values and is not opened" if refused else "is damaged"
        raise ValueError(f"{path} {why}; it is not a checkpoint that this project wrote") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint that this project wrote (expected format '{FORMAT}')")
    return state


def generator_state() -> State:
    """The states of Python's, NumPy's global and torch's random generators, in plain values and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 -- SB3 draws from it
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(state: State) -> None:
    """Put the random generators back to what `generator_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
