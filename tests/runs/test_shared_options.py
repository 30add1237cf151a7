"""Options that all tasks share, as a task's dataclass inherits them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

from rlgns.agents.config import TrainConfig
from rlgns.runs.flags import help_texts
from rlgns.runs.options import parse_run
from rlgns.runs.shared_options import OutputOptions, RunOptions
from rlgns.runs.values import types_of
from rlgns.tasks.config import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class TaskOptions(RunOptions):
    """Options of some task."""

    GROUPS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "Optimisation": "learning_rate",
        "Run": ("out", "resume", "log_every"),
        "Weights & Biases": ("wandb", "wandb_entity"),
        "Machine": "device",
    }
    learning_rate: float = 0.1
    """Step size."""
    log_every: int = 10
    """Updates from one record to the next."""


def flags_by_heading(text: str) -> dict[str, list[str]]:
    sections = re.split(r"^([A-Z].*):$", text, flags=re.MULTILINE)[1:]
    return {
        heading: re.findall(r"^  (--[a-z-]+)", body, flags=re.MULTILINE)
        for heading, body in zip(sections[::2], sections[1::2], strict=True)
    }


def test_inherited_flags_stand_once_under_the_headings_of_the_task(capsys):
    with pytest.raises(SystemExit):
        parse_run(["--help"], default=TaskOptions(), changeable=(), description="Train.")
    flags = flags_by_heading(capsys.readouterr().out)
    assert list(flags) == list(TaskOptions.GROUPS)
    assert flags["Optimisation"] == ["--learning-rate"]
    assert flags["Run"] == [
        "--out",
        "--tensorboard",
        "--resume",
        "--init-from",
        "--checkpoint-seconds",
        "--keep-checkpoints",
        "--log-every",
        "--config",
    ]
    assert flags["Weights & Biases"][:3] == ["--wandb", "--wandb-project", "--wandb-entity"]
    assert flags["Machine"] == ["--device", "--num-torch-threads"]


def test_inherited_flags_are_parsed_and_checked():
    arguments = ["--learning-rate", "0.5", "--wandb", "offline", "--wandb-tags", "a", "b", "--out", "x"]
    options = parse_run(arguments, default=TaskOptions(), changeable=(), description="Train.")
    assert (options.learning_rate, options.wandb, options.wandb_tags) == (0.5, "offline", ("a", "b"))
    assert options.out == Path("x")
    with pytest.raises(ValueError, match="wandb 'maybe' is not one of online, offline, disabled"):
        parse_run(["--wandb", "maybe"], default=TaskOptions(), changeable=(), description="Train.")


@pytest.mark.parametrize("kind", [TrainConfig, SupervisedConfig])
def test_every_trained_task_has_the_shared_options_with_the_same_types_and_defaults(kind):
    task, shared = types_of(kind), types_of(RunOptions)
    assert {name: task[name] for name in shared} == shared
    defaults, shared_defaults = ({f.name: f.default for f in fields(one)} for one in (kind, RunOptions))
    assert {name: defaults[name] for name in shared} == shared_defaults


def test_every_shared_option_has_a_help():
    assert set(help_texts(RunOptions)) == {field.name for field in fields(RunOptions)}
    assert {field.name for field in fields(OutputOptions)} == {"out", "tensorboard", "wandb", "wandb_project"}
