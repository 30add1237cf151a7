"""Upload of a run's model to the Hugging Face hub, as `rlgns export RUN --push USER/REPO` does it.

The files are made first, in the folder `hub` of the run's directory, where they stay: the model that stock
Stable-Baselines3 loads, a model card with the metadata of huggingface_sb3 and the noise scale, the options, and the
replay video where there is one. The token is huggingface_hub's own: `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import re
import shutil
from importlib import import_module
from pathlib import Path

from rlgns.agents.model_card import model_card
from rlgns.runs.directory import read_config
from rlgns.runs.files import write_json, write_text
from rlgns.runs.kept_checkpoints import chosen_checkpoints

FOLDER = "hub"
"""Folder of a run's directory that holds what is uploaded."""

LEFT_OUT = ("out", "resume", "init_from", "device", "num_threads", "num_torch_threads", "num_parts")
"""Options that say where a run was executed, which are nobody else's concern; those of W&B are left out as well."""


def check_repository(repository: str) -> None:
    """Check a repository's name before anything is written.

    Raises:
        ValueError: If it is no name of a repository.
        ModuleNotFoundError: If huggingface_hub is not installed.
    """
    import_module("huggingface_hub")
    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", repository, re.ASCII):
        raise ValueError(f"push {repository!r} is no repository; give --push USER/REPO, as in --push me/a2c-pong")


def make_folder(run: Path, repository: str, checkpoint: str) -> Path:
    """Make the files that are uploaded.

    Args:
        run: The run's directory.
        repository: USER/REPO.
        checkpoint: The checkpoint that is exported, as `rlgns export --checkpoint` names it.

    Returns:
        The folder that holds them.

    Raises:
        ValueError: If the directory holds no run of an agent, or no such checkpoint.
        OSError: If the folder cannot be written to.
    """
    from rlgns.agents.stock_models import write_stock_model
    from rlgns.runs.checkpoints import load_checkpoint

    ((_, path),) = chosen_checkpoints(run, checkpoint).items()
    config = read_config(run)
    options = config["options"]
    if options.get("algo") is None or options.get("num_steps") is None:
        raise ValueError(f"{run} is no run of an agent; name a directory that rlgns train atari has made")
    task = str(options.get("env") or options.get("game"))
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{options['algo']}-{task.replace('/', '-').replace(':', '-')}.zip"
    write_stock_model(run, folder / name, checkpoint)
    kept = {
        key: value
        for key, value in options.items()
        if key not in LEFT_OUT and not key.startswith(("wandb", "tensorboard"))
    }
    versions = config.get("provenance", {}).get("versions", {})
    write_json(folder / "config.json", {"task": config.get("task"), "options": kept, "versions": versions})
    has_replay = _copy_replay(run, folder)
    write_text(
        folder / "README.md", model_card(run, repository, name, task, load_checkpoint(path), has_replay=has_replay)
    )
    return folder


def _copy_replay(run: Path, folder: Path) -> bool:
    """Copy the newest video of the run as replay.mp4, which the hub's page plays; whether there is one."""
    videos = [path for path in run.rglob("*.mp4") if folder not in path.parents]
    if not videos:
        return False
    shutil.copyfile(max(videos, key=lambda path: path.stat().st_mtime), folder / "replay.mp4")
    return True


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder as one commit to a model repository, which is made if it is missing.

    Args:
        folder: The folder.
        repository: USER/REPO.
        private: Whether a repository that is made is private.

    Returns:
        The address of the repository.

    Raises:
        ValueError: If there is no token, no network, or no permission; the message names the folder and the command
            that uploads it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # re-exported all the same

    later = f"the files are in {folder}; upload them later with: hf upload {repository} {folder}"
    if not get_token():
        raise ValueError(f"there is no token for the hub; give one by hf auth login or HF_TOKEN; {later}")
    disable_progress_bars()
    files = [CommitOperationAdd(path.name, str(path)) for path in sorted(folder.iterdir()) if path.is_file()]
    api = HfApi(library_name="rlgns")
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.create_commit(repository, files, commit_message="Upload a model of rlgns")
    except Exception as error:  # of huggingface_hub, and of httpx or requests, as its version has it
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{repository} could not be uploaded ({reason}); {later}") from None
    return str(address)
