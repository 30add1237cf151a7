"""The updates at which the losses of a run are measured: their number over a range of lengths, and their cost."""

import math

import pytest

from rlgns.agents.cadence import (
    COST_AT_DEFAULT,
    MEASUREMENT_COST,
    Cadence,
    updates_per_measurement,
)

KINDS = [(1, True), (1, False), (3, False), (4, False), (10, False), (100, False)]


def default(num_epochs: int, updates_are_measured: bool = False) -> Cadence:
    return Cadence(None, updates_per_measurement(num_epochs, updates_are_measured))


def measured(cadence: Cadence, num_updates: int) -> list[int]:
    return [n for n in range(1, num_updates + 1) if cadence.position(n) is not None]


@pytest.mark.parametrize(("num_epochs", "updates_are_measured"), KINDS[:-1])
def test_a_run_has_all_the_measurements_that_2_percent_of_the_passes_afford(num_epochs, updates_are_measured):
    E, passes = updates_per_measurement(num_epochs, updates_are_measured), num_epochs + 1
    share = COST_AT_DEFAULT / 2 if updates_are_measured else COST_AT_DEFAULT
    assert MEASUREMENT_COST / (E * passes) <= share < MEASUREMENT_COST / ((E - 1) * passes)


@pytest.mark.parametrize(("num_epochs", "updates_are_measured"), KINDS)
def test_every_run_of_40_updates_or_more_has_20_measurements_however_long_it_was_meant_to_be(
    num_epochs, updates_are_measured
):
    cadence = default(num_epochs, updates_are_measured)
    updates = measured(cadence, 5000)
    for length in [*range(40, 300), 1000, 5000]:
        assert sum(n <= length for n in updates) >= 20, length
    assert updates[0] == 1


@pytest.mark.parametrize(("num_epochs", "updates_are_measured"), KINDS)
def test_the_measured_updates_are_as_many_as_the_formula_says(num_epochs, updates_are_measured):
    cadence, E = default(num_epochs, updates_are_measured), updates_per_measurement(num_epochs, updates_are_measured)
    updates = measured(cadence, 3000)
    for n in range(1, 3001, 7):
        terms = [math.ceil(min(n, 40) / 2), n // E]
        if n >= 40:
            terms += [20 + math.floor(4 * math.log2(n / 40) + 1e-12), 20 + 3 * (n - 40) // (4 * E)]
        assert cadence.num_measurements(n) == max(terms) == sum(update <= n for update in updates)


@pytest.mark.parametrize(("num_epochs", "updates_are_measured"), KINDS[:-1])
def test_measuring_costs_2_percent_in_long_runs_and_more_in_shorter_runs_as_documented(
    num_epochs, updates_are_measured
):
    cadence, E = default(num_epochs, updates_are_measured), updates_per_measurement(num_epochs, updates_are_measured)
    share = COST_AT_DEFAULT / 2 if updates_are_measured else COST_AT_DEFAULT
    for n in (80 * E, 81 * E, 123 * E, 1000 * E):
        assert cadence.cost(n, num_epochs) <= share
    assert cadence.cost(40 * E, num_epochs) < 1.3 * share
    longer = [cadence.cost(n, num_epochs) for n in (40, 80, 160, 320, 640, 80 * E)]
    assert longer == sorted(longer, reverse=True)


def test_the_costs_of_ppos_short_runs_are_those_of_the_modules_docstring():
    costs = {n: round(100 * default(4).cost(n, 4), 1) for n in (40, 100, 500, 1000, 2200)}
    assert costs == {40: 28.0, 100: 14.0, 500: 3.8, 1000: 2.5, 2200: 2.0}


def test_measurements_become_rarer_and_no_stretch_of_a_run_goes_unseen():
    updates = measured(default(1, True), 10_000)
    for n in (80, 100, 500, 1000, 3000, 10_000):
        assert sum(n / 2 < update <= n for update in updates) >= 4, n


def test_an_explicit_interval_is_kept_exactly():
    assert measured(Cadence(3, 28), 11) == [1, 4, 7, 10]
    assert [Cadence(3, 28).position(n) for n in (1, 2, 4, 7)] == [0, None, 1, 2]
    assert measured(Cadence(1, 28), 5) == [1, 2, 3, 4, 5]


def test_positions_number_the_measurements():
    cadence = default(4)
    positions = [cadence.position(n) for n in range(1, 2000)]
    assert [p for p in positions if p is not None] == list(range(cadence.num_measurements(1999)))
