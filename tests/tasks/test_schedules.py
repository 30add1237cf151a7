"""Learning-rate schedules against published rates and hand computations."""

import doctest

import pytest

import rlgns.tasks.schedules
from rlgns.tasks.schedules import LinearDecay, WarmupStepDecay


@pytest.mark.parametrize(
    ("warmup", "epochs", "rates"),
    [
        ("none", (0, 2.5, 5, 40), (3.2, 3.2, 3.2, 0.32)),
        ("constant", (0, 2.5, 4.99, 5, 29, 30), (0.1, 0.1, 0.1, 3.2, 3.2, 0.32)),
        ("gradual", (0, 1, 2.5, 5, 60, 80, 89), (0.1, 0.72, 1.65, 3.2, 0.032, 0.0032, 0.0032)),
    ],
)
def test_the_rates_of_goyal_et_al_at_8192_images(warmup, epochs, rates):
    # 0.1 · 8192/256 = 3.2; gradual: 0.1 + 3.1·epoch/5
    schedule = WarmupStepDecay(3.2, 0.1, warmup, 5.0, (30.0, 60.0, 80.0), 10.0)
    assert [schedule.at(epoch) for epoch in epochs] == pytest.approx(rates)


def test_decay_epochs_within_the_warmup_apply_as_well():
    assert WarmupStepDecay(1.0, 0.0, "gradual", 4.0, (1.0,), 2.0).at(2.0) == pytest.approx(0.25)


def test_without_warmup_and_decay_the_rate_is_constant():
    assert {WarmupStepDecay(0.3, 0.1).at(epoch) for epoch in (0, 1e-9, 7, 1e6)} == {0.3}


def test_a_linear_decay_ends_at_zero_and_stays_there():
    schedule = LinearDecay(0.1, epochs=2.0)
    assert [schedule.at(epoch) for epoch in (0, 0.5, 1, 2, 3)] == pytest.approx([0.1, 0.075, 0.05, 0, 0])


def test_the_example_in_the_documentation_gives_what_it_says():
    assert doctest.testmod(rlgns.tasks.schedules) == (0, 3)
