"""Train on from one checkpoint at several batch sizes: `rlgns branch RUN`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Interval, MaxLen

from rlgns.commands import sweep
from rlgns.noise.history import History
from rlgns.noise.scale import NoiseScale
from rlgns.runs.bounds import PositiveFloat, PositiveInt
from rlgns.runs.files import replacing, write_json
from rlgns.runs.goals import RETURNS
from rlgns.runs.json_files import is_number, read_json
from rlgns.runs.kept_checkpoints import chosen_checkpoints
from rlgns.runs.options import parse_flags
from rlgns.runs.probes import LAST
from rlgns.runs.recommendation import deciding_loss
from rlgns.runs.run_report import RunReport, read_report
from rlgns.runs.saved_run import read_run
from rlgns.runs.text_tables import table_lines
from rlgns.runs.trained_batch import trained_batch
from rlgns.study.branching import Branching, branching
from rlgns.sweeps.programs import flags_of

DESCRIPTION = (
    "From one checkpoint of RUN, train the same number of examples at several batch sizes, and find the largest one\n"
    "that loses nothing (Merrill et al. 2025, arXiv:2505.23971). The learning rate follows the batch by the run's\n"
    "noise scale, or by --batch-scale. RUN comes first, options after it. After an interruption the same command goes\n"
    "on."
)

FACTORS = (0.5, 1, 2, 4, 8, 16)
"""Batches that are tried by default, as multiples of the run's."""

FEWEST_UPDATES = 20
"""Updates that a branch with the largest batch makes, at least."""


@dataclass(frozen=True, kw_only=True)
class BranchOptions:
    """Options of `rlgns branch`."""

    checkpoint: str = LAST
    """last, or a number of examples: the nearest checkpoint that --keep-checkpoints has kept."""
    batch_sizes: Annotated[tuple[PositiveInt, ...], MaxLen(100)] = ()
    """Batches in examples (transitions, images, tokens) [half of the run's to 16 times it]."""
    examples: PositiveInt | None = None
    """Examples of every branch [a quarter of those before the checkpoint, at least 20 updates of the largest batch]."""
    seeds: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Branches at each batch size, with seeds of their own."""
    batch_scale: PositiveFloat | None = None
    """B* of the rate's rule in examples, as B_noise of `rlgns probe --curvature` [the run's noise scale]."""
    tolerance: PositiveFloat = 0.02
    """What a batch may lose, as a share of the base batch's result."""
    workers: Annotated[int, Interval(ge=1, le=1024)] = os.cpu_count() or 1
    """Number of branches at the same time."""
    out: Path | None = None
    """Directory of the branches [RUN/branches-CHECKPOINT]."""
    json: Path | None = None
    """JSON file to write the numbers to."""


def main(arguments: Sequence[str]) -> int:
    """Run the branches and print what they tell.

    Args:
        arguments: The run's directory, then flags.

    Returns:
        The exit code, as that of `rlgns sweep`.

    Raises:
        ValueError: The run has no such checkpoint, or a flag is wrong.
    """
    places = [argument for argument in arguments[:1] if not argument.startswith("-")]
    options = parse_flags(BranchOptions, arguments[len(places) :], description=DESCRIPTION, program="rlgns branch RUN")
    if not places:
        raise ValueError("which run? name its directory, as in rlgns branch runs/mnist")
    if options.checkpoint in {"all", "best"}:
        raise ValueError(
            f"checkpoint {options.checkpoint}: branches start from one checkpoint; name last or a number of examples"
        )
    run = Path(places[0])
    ((name, path),) = chosen_checkpoints(run, options.checkpoint).items()
    report = read_report(run)
    out = options.out or run / f"branches-{name}"
    sizes = _batch_sizes(report, options)
    examples = _num_examples(report, name, sizes, options)
    scale = _noise_scale(report, report.run.examples if name == LAST else int(name))
    parameters = _parameters(report, path, sizes, examples, scale, options)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "branch.yaml") as file:
        file.write_text(yaml.safe_dump(_sweep_file(report, parameters), sort_keys=False, allow_unicode=True))
    code = sweep.main([str(out / "branch.yaml"), f"--out={out}", f"--workers={options.workers}", "--no-prune"])
    results = read_results(out, report.run.measure)
    base = min(sizes, key=lambda size: abs(math.log(size / report.run.batch_size)))
    if not results.get(base):
        print(
            f"no branch with the base batch {base:,} has a result; give more --examples than {examples:,}",
            file=sys.stderr,
        )
        return code or 1
    rises = report.run.measure in RETURNS
    level = abs(sum(results[base].values()) / len(results[base]))
    found = branching(results, base, options.tolerance * level, rises=rises)
    if options.json:
        write_json(options.json, as_mapping(found))
    print("\n".join(_lines(found, report, scale, examples)))
    return code


def _batch_sizes(report: RunReport, options: BranchOptions) -> list[int]:
    """Batches in examples, rising, each of them whole units of the run."""
    batch = trained_batch(report.run)
    fewest = batch.smallest * batch.length
    if not options.batch_sizes:
        counts = {max(round(batch.count * factor), batch.smallest) for factor in FACTORS}
        return sorted(count * batch.length for count in counts)
    for size in options.batch_sizes:
        if size % batch.length or size < fewest:
            nearest = max(round(size / batch.length), batch.smallest) * batch.length
            raise ValueError(f"batch_sizes {size} is not made of whole units of {batch.length}; use {nearest}")
    return sorted(set(options.batch_sizes))


def _num_examples(report: RunReport, checkpoint: str, sizes: Sequence[int], options: BranchOptions) -> int:
    before = report.run.examples if checkpoint == LAST else int(checkpoint)
    examples = options.examples or max(before // 4, FEWEST_UPDATES * max(sizes))
    if examples < max(sizes):
        raise ValueError(f"examples {examples} is less than one batch of {max(sizes)}; use more")
    return math.ceil(examples / max(sizes)) * max(sizes)


def _noise_scale(report: RunReport, examples: int) -> NoiseScale | None:
    """The noise scale of the trained loss in the last quarter before the checkpoint."""
    records = [r for r in report.records if examples * 0.75 < float(r.get("progress/examples") or 0) <= examples]
    history = History.from_records(records)
    loss = deciding_loss(report.history)
    return history.noise_scale(loss) if records and history.moments(loss) else None


def _parameters(
    report: RunReport,
    checkpoint: Path,
    sizes: Sequence[int],
    examples: int,
    scale: NoiseScale | None,
    options: BranchOptions,
) -> dict[str, Any]:
    """The options of the branches: those of the run, but for batch, rate, seed and length."""
    run, batch = report.run, trained_batch(report.run)
    known = {name.replace("-", "_") for name in flags_of(_task_name(report))}
    kept = {
        name: value
        for name, value in run.options.items()
        if value is not None and name not in DROPPED and not name.startswith("wandb") and name in known
    }
    noise = (options.batch_scale or _scaled_by(scale, 16 * max(sizes))) / batch.length
    if run.shape:
        noise *= batch.length  # agents count the rule's batch in transitions
    own = batch.count if not run.shape else batch.size
    rate = run.learning_rate * (1 + noise / own) ** batch.rate_exponent
    counts = [size // batch.length for size in sizes]
    fixed: dict[str, Any] = {
        **kept,
        "init_from": str(checkpoint.resolve()),
        "learning_rate": rate,
        "lr_batch_scale": noise,
        "lr_batch_exponent": batch.rate_exponent,
        "wandb": "disabled",
    }
    if run.shape:
        fixed |= {"num_steps": batch.length, "total_transitions": examples, "anneal_learning_rate": False}
    else:
        fixed |= {"max_epochs": examples / batch.length / float(run.facts["num_train"])}
    swept: dict[str, list[int]] = {
        "num_envs" if run.shape else "batch_size": counts,
        "seed": list(range(1, options.seeds + 1)),
    }
    return {name: {"value": value} for name, value in fixed.items()} | {
        name: {"values": values} for name, values in swept.items()
    }


DROPPED = {
    *("out", "resume", "init_from", "config", "checkpoint_seconds", "keep_checkpoints", "device", "goals", "seed"),
    *("batch_size", "micro_batch_size", "num_envs", "num_steps", "num_groups", "measure_every"),
    *("total_transitions", "max_epochs", "max_steps", "num_threads", "num_torch_threads", "num_parts"),
    *("learning_rate", "effective_learning_rate", "anneal_learning_rate", "warmup", "warmup_epochs", "decay_epochs"),
    *("decay_factor", "lr_batch_scale", "lr_batch_exponent", "lr_scaling", "reference_batch_size"),
    *("cooling", "cooling_factor", "adaptive_batch", "adaptive_ratio", "max_batch_size"),
    *("swap_workers", "swap_batch_size", "swap_epochs", "swap_learning_rate"),
}
"""Options of the run that branches do not share."""


def _scaled_by(scale: NoiseScale | None, otherwise: float) -> float:
    """The noise scale that the rate follows: its point, or its lower bound, or a number so large that only α counts."""
    if scale is None or scale.state == "undetermined":
        return otherwise
    return scale.point if math.isfinite(scale.point) and scale.point > 0 else scale.low


def _sweep_file(report: RunReport, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep of the branches, as the file of `rlgns sweep` holds it."""
    return {
        "name": f"branches of {report.run.task}",
        "method": "grid",
        "parameters": dict(parameters),
        "command": ["${interpreter}", "-m", "rlgns", "train", _task_name(report), "${args}"],
    }


def _task_name(report: RunReport) -> str:
    """Name of the task, as `rlgns train` takes it."""
    return "atari" if report.run.shape else report.run.task


def read_results(out: Path, measure: str) -> dict[int, dict[int, float]]:
    """The results of the branches that have ended, by batch size and seed.

    Args:
        out: Directory of the branches.
        measure: Record key of the result.
    """
    results: dict[int, dict[int, float]] = {}
    for summary in sorted(out.glob("*/summary.json")):
        value: Any = read_json(summary).get(measure)
        run = read_run(summary.parent)
        if run.exit_code == 0 and is_number(value):
            results.setdefault(run.batch_size, {})[run.seed] = float(value)
    return results


def as_mapping(found: Branching) -> dict[str, Any]:
    """The result in plain values for JSON; unbounded numbers are None.

    Args:
        found: The result.
    """
    return {
        "largest_batch": found.largest,
        "largest_batch_low": found.certain,
        "largest_batch_high": found.possible if math.isfinite(found.possible) else None,
        "base_batch": found.base,
        "tolerance": found.tolerance,
        "branches": [
            {
                "batch_size": branch.batch_size,
                "mean": branch.mean,
                "loss": branch.loss,
                "loss_low": branch.low if math.isfinite(branch.low) else None,
                "loss_high": branch.high if math.isfinite(branch.high) else None,
                "num_seeds": branch.num_seeds,
            }
            for branch in found.branches
        ],
    }


def _lines(found: Branching, report: RunReport, scale: NoiseScale | None, examples: int) -> list[str]:
    """The result for the terminal."""
    run = report.run
    word = "return" if run.measure in RETURNS else "loss"
    rows = [
        (
            f"{branch.batch_size:,}" + (" *" if branch.batch_size == found.base else "  "),
            f"{branch.mean:.4g}",
            _interval(branch.loss, branch.low, branch.high),
            str(branch.num_seeds),
        )
        for branch in found.branches
    ]
    headings = (f"batch in {run.unit}", word, "lost against *", "seeds")
    lines = ["", *table_lines(headings, rows, justify=("right", "right", "right", "right")), ""]
    high = "…" if math.isinf(found.possible) else f"{found.possible:,.0f}"
    lines += [
        f"After {examples:,} {run.unit}, the largest batch that loses no more than {found.tolerance:.2g} of {word}:",
        f"{found.largest:,} [{found.certain:,}, {high}] {run.unit}"
        + (", the largest that was tried" if found.largest == found.branches[-1].batch_size else ""),
    ]
    if scale:
        lines.append(f"The noise scale before the checkpoint: {scale} {run.unit}")
    return lines


def _interval(point: float, low: float, high: float) -> str:
    if not math.isfinite(low):
        return f"{point:.2g}"
    return f"{point:.2g} [{low:.2g}, {high:.2g}]"
