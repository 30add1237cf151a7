"""The page of a model on the Hugging Face hub: metadata as huggingface_sb3 writes them, use, and the noise scale."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlgns.runs.foreign_text import printable
from rlgns.runs.run_report import read_report, report_lines
from rlgns.runs.summary_numbers import estimates

LOADING = """\
```python
from huggingface_sb3 import load_from_hub
from stable_baselines3 import {algo}

model = {algo}.load(load_from_hub("{repository}", "{file}"))
```

Training goes on in [rlgns](https://arxiv.org/abs/1812.06162) by `rlgns.agents.from_sb3("{file}", env)`, or by
`rlgns train atari {flags} --init-from {file}`.
"""


def model_card(run: Path, repository: str, file: str, task: str, state: Mapping[str, Any], *, has_replay: bool) -> str:
    """The text of README.md.

    Args:
        run: The run's directory.
        repository: USER/REPO.
        file: Name of the model's file.
        task: The environment's id, or the game's name.
        state: The checkpoint that is exported; its last evaluation, or else its last episodes, give the mean reward.
        has_replay: Whether replay.mp4 is uploaded, too.
    """
    from huggingface_hub import EvalResult, ModelCardData

    report = read_report(run)
    algo = str(report.run.options["algo"]).upper()
    evaluated = (state.get("evaluation") or {}).get("latest")
    trained = [float(episode["r"]) for episode in state["counters"]["finished"]]
    returns: list[float] = evaluated["returns"] if evaluated else trained
    result = EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=task,
        dataset_name=task,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{statistics.fmean(returns):.2f} +/- {statistics.pstdev(returns):.2f}" if returns else "unknown",
        verified=False,
    )
    data = ModelCardData(
        library_name="stable-baselines3",
        tags=[task, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "rlgns"],
        model_name=algo,
        eval_results=[result] if returns else None,
    )
    flags = f"--game {task}" if report.run.options.get("env") is None else f"--env {task}"
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {algo} on {task}\n",
        f"A {algo} agent of [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3), trained by rlgns for "
        f"{report.run.examples:,} transitions, with {report.run.options['num_envs']} environments × "
        f"{report.run.options['num_steps']} steps behind each update.",
        _reward(returns, is_evaluated=bool(evaluated)),
        *(["![replay](replay.mp4)\n"] if has_replay else []),
        "## Use\n",
        LOADING.format(algo=algo, repository=repository, file=file, flags=f"{flags} --algo {algo.lower()}"),
        _noise(report.history, report.losses),
        "## What a next run should look like\n",
        "```\n" + printable("\n".join(report_lines(report))).replace(str(run), "RUN") + "\n```\n",
        "`config.json` has all options of the run.\n",
    ]
    return "\n".join(part for part in parts if part)


def _reward(returns: list[float], *, is_evaluated: bool) -> str:
    if not returns:
        return "No episode had ended when the model was saved.\n"
    episodes = "episodes of its last evaluation" if is_evaluated else "last training episodes, with sampled actions"
    return (
        f"Its {len(returns)} {episodes}, with unclipped rewards, have a mean return of {statistics.fmean(returns):.2f} "
        f"and a standard deviation of {statistics.pstdev(returns):.2f}.\n"
    )


def _noise(history: Any, losses: list[str]) -> str:
    """The noise scales of the second half of the run as a table; empty if nothing was measured."""
    scales = estimates(history, losses)["late"]
    if not scales:
        return ""
    rows = [f"| {loss} | {scale} | {scale.num_measurements} |" for loss, scale in scales.items()]
    return "\n".join(
        [
            "## Gradient noise scale\n",
            "Over the second half of the run, in transitions, with 95 % intervals: the batch at which the noise of a "
            "gradient estimate is as large as the gradient ([McCandlish et al. "
            "2018](https://arxiv.org/abs/1812.06162)).\n",
            "| loss | noise scale | measurements |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
