"""What critical batch sizes and noise scales did McCandlish et al. measure?

Source: McCandlish et al. 2018, arXiv:1812.06162, table 1.
"""

from __future__ import annotations

from dataclasses import dataclass

Bounds = tuple[float, float]
"""Lowest and highest value; the same twice where a single number is known."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of the paper's table, in its own units.

    Attributes:
        task: The paper's name of the task.
        data: Word by which the same data set is recognised here; empty where there is none.
        unit: What an example is called, in the plural.
        critical_start: Lowest and highest B_crit at the start of training; None where it was not measured.
        critical_average: Lowest and highest B_crit on average over training; None where it was not measured.
        simple_start: Lowest and highest B_simple at the start.
        simple_average: Lowest and highest B_simple on average.
    """

    task: str
    data: str
    unit: str
    critical_start: Bounds | None
    critical_average: Bounds | None
    simple_start: Bounds
    simple_average: Bounds


def _one(number: float) -> Bounds:
    """Bounds of a number of which the paper gives no range."""
    return number, number


PAPER = (
    PaperRow("MNIST", "mnist", "images", _one(20), _one(200), _one(50), _one(900)),
    PaperRow("SVHN", "svhn", "images", _one(50), _one(500), _one(300), _one(4000)),
    PaperRow("CIFAR10", "cifar10", "images", _one(300), _one(900), _one(400), _one(2000)),
    PaperRow("ImageNet", "imagenet", "images", _one(1000), _one(15_000), _one(4000), _one(30_000)),
    PaperRow("autoencoder", "svhn", "images", _one(10), _one(40), _one(2), _one(2)),
    PaperRow("VAE", "svhn", "images", _one(10), _one(200), _one(10), _one(10)),
    PaperRow("Billion Word", "billion", "tokens", _one(700), _one(100_000), _one(1000), _one(150_000)),
    PaperRow("Atari, 7 games", "", "frames", (100, 1000), (400, 8000), (100, 1000), (1000, 20_000)),
    PaperRow("Dota 1v1", "dota", "frames", _one(50_000), _one(3_000_000), _one(100_000), _one(300_000)),
    PaperRow("Dota 5v5", "", "frames", None, None, _one(100_000), _one(24_000_000)),
)
"""Table 1 of the paper. It estimates that B_crit of Dota 5v5 is above 8 million, and does not measure it."""

PAPER_TASKS = {
    "mnist": "MNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "imagenet": "ImageNet",
    "autoencoder": "autoencoder",
    "vae": "VAE",
    "recurrent PPO on two-player Pong": "Dota 1v1",
    "billion_word": "Billion Word",
}
"""The paper's name of each of our tasks that it measured too."""
