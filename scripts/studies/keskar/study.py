"""Do small batches find flatter minima? Sharpness and test error of two minima, and the line between them.

python scripts/studies/keskar/study.py --data-dir DIRECTORY --out runs/keskar

It repeats tables 3 and 4 and figure 3 of Keskar et al. 2016, arXiv:1609.04836, on MNIST: batches of 32 images against a
tenth of the training set, Adam, several seeds. Results go to sharpness.csv and line.csv, the figure to line.png.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from sharpness import Float64, along_line, flat_parameters, sharpness

from rlgns.report.style import PALETTE, STYLE
from rlgns.runs.ranks import ALONE
from rlgns.study.csv_files import write_csv
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.config import DEFAULTS
from rlgns.tasks.learning import Learner

SMALL = 32
RADII, SUBSPACES = (1e-3, 5e-4), (None, 100)


@dataclass(frozen=True)
class Options:
    """Options of the study."""

    data_dir: Path | None = None
    """Directory with MNIST's parquet files [the Hugging Face hub]."""
    out: Path = Path("runs/keskar")
    """Directory for the tables and the figure."""
    num_train: int = 5_000
    """Training images; the large batch is a tenth of them."""
    num_test: int = 2_000
    """Test images."""
    epochs: float = 25.0
    """Epochs of each training; both trainings should fit the images well."""
    updates: int | None = None
    """Updates of each training, the same for both batches, instead of epochs."""
    seeds: int = 2
    """Number of pairs of trainings."""


def main() -> None:
    """Train the pairs, measure sharpness and the lines between them, write tables and figure."""
    options = tyro.cli(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    base = replace(
        DEFAULTS["mnist"], data_dir=options.data_dir, num_train=options.num_train, num_test=options.num_test,
        optimizer="adam", learning_rate=1e-3, measure=False, evaluation_examples=options.num_train,
    )  # fmt: skip
    data = TASKS["mnist"].load(base)
    rows: list[dict[str, object]] = []
    lines = []
    for seed in range(options.seeds):
        minima = {}
        for name, batch_size in (("small", SMALL), ("large", options.num_train // 10)):
            learner = Learner(
                TASKS["mnist"], replace(base, batch_size=batch_size), data, torch.device("cpu"), ALONE, [seed]
            )
            updates = 0
            while updates < options.updates if options.updates else learner.epoch < options.epochs:
                learner.update()
                updates += 1
            rows.append({**_row(learner, name, seed), "updates": updates})
            print(rows[-1], flush=True)
            minima[name] = flat_parameters(learner.model)
        lines.append(_line(learner, minima["small"], minima["large"]))
    write_csv(options.out / "sharpness.csv", rows)
    alphas = _alphas()
    means = np.mean(lines, axis=0)
    names = ("train_loss", "train_error", "test_loss", "test_error")
    table = [
        {"alpha": alpha, **dict(zip(names, values, strict=True))} for alpha, values in zip(alphas, means, strict=True)
    ]
    write_csv(options.out / "line.csv", table)
    _draw(options.out / "line.png", alphas, np.array(lines))


def _row(learner: Learner, name: str, seed: int) -> dict[str, object]:
    """Accuracies and sharpness of a trained network."""
    train, test = learner.evaluate(learner.data.train), learner.evaluate(learner.data.test or learner.data.train)
    inputs, targets = learner.data.train.take(torch.arange(len(learner.data.train)))

    def loss() -> torch.Tensor:
        return learner.task.loss(learner.model, inputs, targets, torch.empty(len(inputs), 0))[0].mean()

    generator = np.random.default_rng(seed)
    sharpnesses = {
        f"sharpness_{radius:g}_{'full' if subspace is None else subspace}": sharpness(
            learner.model, loss, radius, subspace=subspace, generator=generator
        )
        for radius in RADII
        for subspace in SUBSPACES
    }
    accuracies = {"train_accuracy": 1 - (train[1] or 0), "test_accuracy": 1 - (test[1] or 0)}
    return {"batch": name, "batch_size": learner.config.batch_size, "seed": seed, **accuracies, **sharpnesses}


def _alphas() -> Float64:
    """Positions on the line; 0 is the minimum of the small batch, 1 that of the large batch."""
    return np.linspace(-1, 2, 25)


def _line(learner: Learner, small: Float64, large: Float64) -> Float64:
    """Training loss and error, test loss and error at each position on the line between two minima."""

    def values() -> tuple[float, ...]:
        evaluations = learner.evaluate(learner.data.train), learner.evaluate(learner.data.test or learner.data.train)
        return tuple(value or 0.0 for evaluation in evaluations for value in evaluation)

    return along_line(learner.model, values, small, large, list(_alphas()))


def _draw(path: Path, alphas: Float64, lines: Float64) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        errors = axes.twinx()
        for column, style in ((0, "-"), (2, "--")):
            name = "training" if column == 0 else "test"
            axes.plot(alphas, lines[:, :, column].mean(0), style, color=PALETTE[0], label=f"{name} loss")
            errors.plot(
                alphas, 100 * (1 - lines[:, :, column + 1].mean(0)), style, color=PALETTE[1], label=f"{name} accuracy"
            )
        axes.set_yscale("log")
        axes.set_xlabel("α: 0 small batch, 1 large batch")
        axes.set_ylabel("loss", color=PALETTE[0])
        errors.set_ylabel("accuracy, %", color=PALETTE[1])
        handles = [*axes.get_lines(), *errors.get_lines()]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
        figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
