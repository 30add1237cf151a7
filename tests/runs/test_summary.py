import json
import math

import pytest

from rlgns import GradientMoments
from rlgns.noise.history import History
from rlgns.runs.summary import loss_lines
from rlgns.runs.summary_numbers import estimates, summary_numbers


def moments(sq_norm: float, error: float, trace: float = 1000.0) -> GradientMoments:
    """Moments with this |G|² and its jackknife error, and tr Σ without error, at K = 8 and B = 2 048 (16 × 128)."""
    return GradientMoments(sq_norm + trace / 256, sq_norm + trace / 2048, 256, 2048, 8, error**2, 0.0, 0.0)


def history(*, policy: GradientMoments, value: GradientMoments, n: int = 40) -> History:
    return History([{"policy": policy, "value": value, "value/by_transition": moments(1, 0.1, 100)}] * n)


# n = 40 measurements, the late window holds 20 of them: degrees of freedom 140/4 = 35, t = 2.030, errors divided by √20
KNOWN = moments(1, 0.1)  # 1000/(1 ± 2.030·0.02236): 957 to 1 048
BOUND = moments(1, 4)  # lower bound 1000/(1 + 2.030·0.894) = 355
NEGATIVE = moments(-1, 4)  # no point; 1000/(1.816 − 1) = 1 226 or more
HOPELESS = moments(-10, 2)  # |G|² clear below zero


def lines(**losses: GradientMoments) -> list[str]:
    return loss_lines(history(**losses), tuple(losses), unit="environment")


def run_of(updates: list[int], measured: GradientMoments, first: GradientMoments | None = None) -> History:
    made = History()
    for update in updates:
        made.add({"policy": first if first and update == updates[0] else measured}, update)
    return made


def line(text: list[str], start: str, nth: int = 0) -> str:
    return [one for one in text if one.strip().startswith(start)][nth]


def test_the_late_window_is_the_last_half():
    early, late = {"policy": BOUND}, {"policy": KNOWN}
    found = estimates(History([early] * 4 + [late] * 5), ["policy", "absent"])
    assert found["late"]["policy"].num_measurements == 4
    assert found["late"]["policy"].state == "interval"
    assert found["whole"]["policy"].num_measurements == 9
    assert "absent" not in found["late"]


def test_one_measurement_is_its_own_late_window():
    assert estimates(History([{"policy": KNOWN}]), ["policy"])["late"]["policy"].num_measurements == 1


def test_the_heading_names_quantity_unit_level_and_number_of_measurements():
    heading = lines(policy=KNOWN, value=KNOWN)[0]
    for part in ("tr Σ/|G|²", "in transitions", "95 % intervals", "by environment"):
        assert part in heading
    assert line(lines(policy=KNOWN, value=KNOWN), "value").split()[-1] == "40"


def test_every_line_fits_a_terminal_of_80_columns():
    long = loss_lines(history(policy=moments(1, 0.3, 987_654), value=KNOWN), ["policy"], unit="environment")
    assert line(long, "policy").split()[-2:] == ["–", "40"]
    texts = [lines(policy=a, value=b) for a in (KNOWN, BOUND, NEGATIVE, HOPELESS) for b in (KNOWN, moments(1, 0.1, 9))]
    for text in [long, *texts]:
        assert max(map(len, text)) <= 80


@pytest.mark.parametrize(
    ("policy", "cell"),
    [(KNOWN, "1,000 [957, 1,048]"), (BOUND, "[355, ∞)"), (NEGATIVE, "[1,2"), (HOPELESS, "undetermined")],
)
def test_the_table_shows_the_interval_the_bound_or_that_there_is_neither(policy, cell):
    assert cell in line(lines(policy=policy, value=KNOWN), "policy")


def test_a_start_that_carries_the_whole_runs_number_is_named():
    made = run_of(list(range(1, 81)), KNOWN, first=moments(1000, 0.1))
    # 1 000 of 1 079
    said = " ".join(" ".join(loss_lines(made, ["policy"], unit="environment")).split())
    assert (
        "policy: the whole run's number is that of its start; the first 8 of 80 measurements carry 93% of Σ|G|²" in said
    )
    assert not any("of its start" in one for one in lines(policy=KNOWN, value=BOUND))
    numbers = summary_numbers(made, ["policy"], 2048)
    assert numbers["noise/policy/late/efficiency"] == pytest.approx(2048 / 3048)
    assert numbers["noise/policy/whole/efficiency"] is None


def test_numbers_of_fewer_than_20_measurements_say_nothing_of_the_batch():
    numbers = summary_numbers(run_of(list(range(1, 41, 2)), KNOWN), ["policy"], 2048)
    assert (numbers["noise/policy/late/num_measurements"], numbers["noise/policy/whole/num_measurements"]) == (10, 20)
    assert numbers["noise/policy/late/noise_scale"] == pytest.approx(1000)
    assert [numbers[f"noise/policy/late/efficiency{end}"] for end in ("", "_low", "_high")] == [None] * 3
    assert numbers["noise/policy/whole/efficiency"] == pytest.approx(2048 / 3048)


def test_the_design_effect_stands_beside_the_loss_that_has_one():
    text = lines(policy=KNOWN, value=KNOWN)
    assert line(text, "value").split()[-2] == "10.0"  # 1000/100
    assert line(text, "policy").split()[-2] == "–"


def test_by_transition_is_called_a_lower_bound():
    text = loss_lines(history(policy=KNOWN, value=KNOWN), ["policy"], unit="transition")
    assert "by transition" in text[0]
    assert "a lower bound" in text[-1]
    assert "a lower bound" not in lines(policy=KNOWN, value=KNOWN)[-1]


def test_a_run_without_measurements_has_no_table():
    assert loss_lines(History(), ["policy"], unit="environment") == []
    assert summary_numbers(History(), ["policy"], 2048)["noise/num_measurements"] == 0


@pytest.mark.parametrize("policy", [KNOWN, BOUND, NEGATIVE, HOPELESS])
def test_numbers_are_finite_or_none(policy):
    numbers = summary_numbers(history(policy=policy, value=KNOWN), ["policy", "value"], 2048)
    json.dumps(numbers, allow_nan=False)
    assert all(value is None or isinstance(value, str) or math.isfinite(value) for value in numbers.values())


def test_numbers_of_the_three_states():
    numbers = summary_numbers(history(policy=KNOWN, value=BOUND), ["policy", "value"], 1000)
    assert numbers["noise/policy/late/state"] == "interval"
    assert numbers["noise/policy/late/noise_scale"] == pytest.approx(1000)
    assert numbers["noise/policy/late/efficiency"] == pytest.approx(0.5)
    assert numbers["noise/policy/late/efficiency_low"] < 0.5 < numbers["noise/policy/late/efficiency_high"]
    assert numbers["noise/policy/whole/noise_scale_low"] > numbers["noise/policy/late/noise_scale_low"]
    assert numbers["noise/policy/design_effect"] is None
    # ten but for the share of the variance between environments in that of a transition
    assert numbers["noise/value/design_effect"] == pytest.approx(10, rel=0.01)
    assert numbers["noise/value/late/state"] == "lower bound"
    assert numbers["noise/value/late/noise_scale_high"] is None
    assert numbers["noise/value/late/efficiency_low"] == 0
    unknown = summary_numbers(history(policy=HOPELESS, value=NEGATIVE), ["policy", "value"], 1000)
    assert unknown["noise/policy/late/state"] == "undetermined"
    assert unknown["noise/policy/late/noise_scale"] is None
    assert unknown["noise/value/late/noise_scale"] is None
    assert unknown["noise/value/late/efficiency"] is None
    assert unknown["noise/value/late/efficiency_high"] < 1
