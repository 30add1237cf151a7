"""What is said about the learning rate follows from the estimate, and never changes the rate by more than two."""

import math

import pytest

from rlgns.noise.step_size import StepSize
from rlgns.runs.batch_advice import NO_BREAK
from rlgns.runs.step_size_words import step_size_factor, step_size_sentence


def estimate(low, high, ratio=math.nan, bounds=(0.0, math.inf), is_exact=True):
    return StepSize(100, (low + high) / 2, low, high, ratio, *bounds, is_exact, 0.95)


SHORT = estimate(-2.0, -1.0, 0.84, (0.7, 0.9))
BEYOND = estimate(1.0, 2.0, 1.5, (1.4, 1.9))


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (SHORT, 1 / 0.84),
        (BEYOND, 1 / 1.5),
        (estimate(-2.0, -1.0, 0.1, (0.05, 0.2)), 2.0),  # never more than twice
        (estimate(1.0, 2.0, 9.0, (5.0, 20.0)), 0.5),  # nor less than half
        (estimate(-2.0, -1.0, 0.95, (0.9, 0.99)), 1.0),  # a change of a tenth is not worth a run
        (estimate(-1.0, 1.0, 0.4, (0.1, 3.0)), 1.0),  # undecided
        (estimate(1.0, 2.0), 0.5),  # the loss does not even fall at the start
        (estimate(-2.0, -1.0), 2.0),
    ],
)
def test_the_rate_is_changed_towards_the_best_one_and_by_two_at_most(step, factor):
    assert step_size_factor(step) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "options", "words"),
    [
        (SHORT, {}, "--learning-rate 0.0012 (now 0.001) makes more of an update at this batch: the loss still falls"),
        (SHORT, {}, "(0.84 [0.7, 0.9] times the best rate for one update, 100 updates)"),
        (BEYOND, {}, "--learning-rate 0.00067 (now 0.001) makes more of an update at this batch: an update ends where"),
        (BEYOND, {"epochs": True}, "(now 0.001) or fewer --num-epochs makes"),
        (SHORT, {"epochs": True}, "(now 0.001) makes"),
        (SHORT, {"scales_rate": True}, "1.2 times the --learning-rate makes"),
        (estimate(-1.0, 1.0), {}, "keep --learning-rate 0.001 at this batch: updates are not clearly too short"),
        (estimate(-1.0, 1.0), {"scales_rate": True}, "keep --learning-rate at this batch"),
        (estimate(-2.0, -1.0, 0.95, (0.9, 0.99)), {}, "keep --learning-rate 0.001 at this batch: an update ends close"),
        (
            estimate(1.0, 2.0, 1.2, (1.1, math.inf), is_exact=False),
            {},
            "--learning-rate 0.00083 or less (now 0.001) makes",
        ),
        (estimate(1.0, 2.0, 1.2, (1.1, math.inf), is_exact=False), {}, "(at least 1.1 times the best rate"),
        (estimate(1.0, 2.0, 1.2, (1.02, math.inf), is_exact=False), {}, "(above the best rate for one update, 100"),
        (estimate(-2.0, -1.0, 0.8, (0.0, 0.98), is_exact=False), {}, "times the best rate"),
        (estimate(-2.0, -1.0, 0.8, (0.0, 0.9), is_exact=False), {}, "--learning-rate 0.0013 or more (now 0.001)"),
        (estimate(-2.0, -1.0, 0.8, (0.0, 0.9), is_exact=False), {}, "(at most 0.9 times the best rate"),
    ],
)
def test_the_sentence_names_the_rate_the_reason_and_the_evidence(step, options, words):
    assert words in step_size_sentence(step, 0.001, **options).replace(NO_BREAK, " ")
