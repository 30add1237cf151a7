import json
import math

import pytest

from rlgns import GradientMoments
from rlgns.noise.history import History
from rlgns.runs.summary import _round, estimates, summary_lines, summary_numbers


def moments(sq_norm: float, error: float, trace: float = 1000.0) -> GradientMoments:
    """The given |G|² with its jackknife error, and tr Σ without error, at K = 8 and B = 2 048 (16 × 128)."""
    return GradientMoments(sq_norm + trace / 256, sq_norm + trace / 2048, 256, 2048, 8, error**2, 0.0, 0.0)


def history(*, policy: GradientMoments, value: GradientMoments, n: int = 8) -> History:
    return History([{"policy": policy, "value": value, "value/by_transition": moments(1, 0.1, 100)}] * n)


# n = 8 measurements, the late window holds 4 of them: degrees of freedom 28/4 = 7, t = 2.365, error of the mean halved
KNOWN = moments(1, 0.1)  # 1000/(1 ± 2.365·0.05): 894 to 1 134
BOUND = moments(1, 2)  # lower bound 1000/(1 + 2.365) = 297
NEGATIVE = moments(-1, 2)  # no point; 1000/(2.365 − 1) = 733 or more
HOPELESS = moments(-10, 2)  # |G|² clear below zero


def lines(**losses: GradientMoments) -> list[str]:
    return summary_lines(history(**losses), tuple(losses), shape=(16, 128), unit="environment")


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
    for words in ("tr Σ/|G|²", "in transitions", "95 % intervals", "by environment"):
        assert words in heading
    assert line(lines(policy=KNOWN, value=KNOWN), "value").split()[-1] == "8"


def test_every_loss_and_the_batch_are_named():
    text = lines(policy=KNOWN, value=BOUND)
    assert "16 × 128 = 2,048 transitions" in "\n".join(text)
    for loss in ("policy", "value"):
        assert sum(one.strip().startswith(loss) for one in text) >= 2


def test_a_known_noise_scale_below_the_batch_is_told_with_interval_share_and_advice():
    text = lines(policy=KNOWN, value=KNOWN)
    assert "1,000 [894, 1,134]" in line(text, "policy")
    # 1/(1 + 1134/2048) = 64 %, 1/(1 + 894/2048) = 70 %
    advice = line(text, "policy", 1)
    assert "64%–70% of a noiseless step's progress" in advice
    assert "larger than it needs to be; 1,000 would make half the progress" in advice
    assert not any("could not be told" in one for one in text)


def test_a_known_noise_scale_above_the_batch_advises_a_larger_one():
    large = moments(1, 0.1, trace=123_456)
    assert "growing it towards 120,000 saves steps" in line(lines(policy=large, value=large), "policy", 1)


def test_a_batch_inside_the_interval_is_balanced():
    near = moments(1, 0.1, trace=2048)
    assert "about where steps and examples are balanced" in line(lines(policy=near, value=near), "policy", 1)


def test_a_lower_bound_is_told_as_one_and_what_is_missing_is_named():
    text = lines(policy=BOUND, value=KNOWN)
    assert "[297, ∞)" in line(text, "policy")
    # at most 1/(1 + 297/2048) = 87 %
    assert "at most 87% of a noiseless step's progress; a batch of 300 or more" in line(text, "policy", 1)
    missing = text[text.index("What could not be told of the second half:") + 1]
    # (1.96·1/1)²·4 = 15.4
    assert missing.split()[0] == "policy"
    assert "an upper bound: needs about 16 measurements where 4 were made (longer training, or a smaller" in missing


def test_a_negative_squared_gradient_has_a_bound_without_a_point_and_needs_at_least_so_many():
    text = lines(policy=NEGATIVE, value=KNOWN)
    assert line(text, "policy").split()[1] == "[733,"
    # largest plausible |G|² 0.96: (1.96/0.96)²·4 = 16.7
    assert "an upper bound: needs at least about 17 measurements where 4 were made" in line(text, "policy", 2)


def test_what_is_undetermined_is_called_so_and_gives_no_number():
    text = lines(policy=HOPELESS, value=KNOWN)
    assert line(text, "policy").split()[:2] == ["policy", "undetermined"]
    assert line(text, "policy", 1).split() == ["policy", "undetermined"]
    assert "any bound: the gradient is not clear of the noise at all" in line(text, "policy", 2)


def test_the_design_effect_stands_beside_the_loss_that_has_one():
    text = lines(policy=KNOWN, value=KNOWN)
    assert line(text, "value").split()[-2] == "10.0"  # 1000/100
    assert line(text, "policy").split()[-2] == "–"


def test_by_transition_is_called_a_lower_bound():
    text = summary_lines(history(policy=KNOWN, value=KNOWN), ["policy"], shape=(1, 2048), unit="transition")
    assert "by transition" in text[0]
    assert "a lower bound" in text[-1]
    assert "a lower bound" not in lines(policy=KNOWN, value=KNOWN)[-1]


def test_a_run_without_measurements_says_so():
    empty = summary_lines(History(), ["policy"], shape=(16, 128), unit="environment")
    assert empty == ["The noise scale was not measured in this run."]
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
    assert numbers["noise/value/design_effect"] == pytest.approx(10)
    assert numbers["noise/value/late/state"] == "lower bound"
    assert numbers["noise/value/late/noise_scale_high"] is None
    assert numbers["noise/value/late/efficiency_low"] == 0
    unknown = summary_numbers(history(policy=HOPELESS, value=NEGATIVE), ["policy", "value"], 1000)
    assert unknown["noise/policy/late/state"] == "undetermined"
    assert unknown["noise/policy/late/noise_scale"] is None
    assert unknown["noise/value/late/noise_scale"] is None
    assert unknown["noise/value/late/efficiency"] is None
    assert unknown["noise/value/late/efficiency_high"] < 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (3.4, "3.4"),
        (0.123, "0.12"),
        (12.3, "12"),
        (123, "120"),
        (994, "990"),
        (996, "1,000"),
        (1000, "1,000"),
        (123_456, "120,000"),
        (9.99e6, "10,000,000"),
    ],
)
def test_advice_is_rounded_to_two_digits(value, words):
    assert _round(value) == words
