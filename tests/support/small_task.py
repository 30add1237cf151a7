"""A complete task in under 60 lines: logistic regression by gradient descent in the lifecycle of all runs."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.lifecycle import execute_run
from rlgns.runs.plan import Plan
from rlgns.runs.records import Record
from rlgns.runs.task import State, Task

WANDB = {"wandb": "disabled", "wandb_project": "rlgns"}


class LogisticRegression(Task):
    subject = title = "logistic regression"
    steps = 0

    def __init__(self, seed: int, max_steps: int, step_seconds: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(256, 4, generator=generator)
        self.targets = (self.inputs.sum(1) + torch.randn(256, generator=generator) > 0).float()
        self.weights, self.max_steps, self.step_seconds = torch.zeros(4), max_steps, step_seconds

    @property
    def facts(self) -> Mapping[str, Any]:
        sizes = {"batch_size": 256, "max_examples": 256 * self.max_steps}
        return {"task": self.subject, "unit": "examples", "goal_measure": "train/loss", **sizes}

    @property
    def is_over(self) -> bool:
        return self.steps >= self.max_steps

    def step(self) -> Record:
        time.sleep(self.step_seconds)
        residuals = torch.sigmoid(self.inputs @ self.weights) - self.targets
        self.weights = self.weights - self.inputs.T @ residuals / len(residuals)
        self.steps += 1
        loss = binary_cross_entropy_with_logits(self.inputs @ self.weights, self.targets)
        return self.progress() | {"train/loss": float(loss)}

    def progress(self) -> Record:
        return {"progress/steps": self.steps, "progress/examples": 256 * self.steps}

    def state(self) -> State:
        return {"weights": self.weights, "num_updates": self.steps}

    def restore(self, state: State, records: Sequence[Record]) -> str:
        self.weights, self.steps = state["weights"], state["num_updates"]
        return ""

    def closing_lines(self) -> list[str]:
        return [f"mean confidence {float(logsigmoid((self.inputs @ self.weights).abs()).exp().mean()):.3f} Σ"]


def run(
    out: Path | None,
    max_steps: int = 40,
    *,
    resume: Path | None = None,
    seed: int = 0,
    seconds: float = 0,
    **options: Any,
) -> int:
    options |= {"out": out and str(out), "resume": resume and str(resume), "seed": seed, "max_steps": max_steps}
    plan = Plan(
        options={**WANDB, **options, "checkpoint_seconds": 1e-9}, task="logistic regression", name="logistic",
        group="logistic", changeable=("max_steps", "checkpoint_seconds"),
    )  # fmt: skip
    return exit_code_of(lambda: execute_run(plan, lambda: LogisticRegression(seed, max_steps, seconds)))


if __name__ == "__main__":  # python small_task.py OUT MAX_STEPS STEP_SECONDS
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2]), seconds=float(sys.argv[3])))
