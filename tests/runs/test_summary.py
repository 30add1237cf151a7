import json
import math
import re

import pytest

from rlgns import GradientMoments, PooledMoments
from rlgns.noise.history import History
from rlgns.runs.batch_advice import Flags, rounded
from rlgns.runs.summary import summary_lines
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
    return summary_lines(history(**losses), tuple(losses), shape=(16, 128), unit="environment")


def words(text: list[str], about: str = "") -> str:
    """The sentences below the table joined into one line; only those about one loss if it is named."""
    below = " ".join(text[next(i for i, one in enumerate(text) if one.startswith("This run")) :])
    below = " ".join(below.split())
    return below[below.index(f"{about}: ") :] if about else below


def run_of(updates: list[int], measured: GradientMoments, first: GradientMoments | None = None) -> History:
    made = History()
    for update in updates:
        made.add({"policy": first if first and update == updates[0] else measured}, update)
    return made


def advice(made: History, shape: tuple[int, ...] = (16, 128), **options: object) -> str:
    return words(summary_lines(made, ["policy"], shape=shape, unit="environment", **options), "policy")


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


def test_every_line_fits_a_terminal_of_80_columns_and_no_flag_is_torn_from_its_value():
    few = run_of(list(range(1, 40, 2)), BOUND)
    long = summary_lines(
        history(policy=moments(1, 0.3, 987_654), value=KNOWN), ["policy"], shape=(4, 5), unit="environment"
    )
    assert line(long, "policy").split()[-2:] == ["–", "40"]
    texts = [lines(policy=a, value=b) for a in (KNOWN, BOUND, NEGATIVE, HOPELESS) for b in (KNOWN, moments(1, 0.1, 9))]
    for text in [long, *texts, summary_lines(few, ["policy"], shape=(8, 64), unit="transition")]:
        assert max(map(len, text)) <= 80
        assert not any(one.rstrip().split()[-1].startswith("--") for one in text)


def test_every_loss_and_the_batch_are_named():
    text = lines(policy=KNOWN, value=BOUND)
    assert "16 × 128 = 2,048 transitions" in "\n".join(text)
    for loss in ("policy", "value"):
        assert sum(one.strip().startswith(loss) for one in text) >= 2


def test_a_known_noise_scale_below_the_batch_is_told_with_interval_share_and_advice():
    text = lines(policy=KNOWN, value=BOUND)
    assert "1,000 [957, 1,048]" in line(text, "policy")
    # 1/(1 + 1048/2048) = 66 %, 1/(1 + 957/2048) = 68 %
    assert "66%–68% of a noiseless step's progress" in words(text, "policy")
    assert "larger than it needs to be: 1,000 transitions would make half the progress" in words(text, "policy")


def test_what_is_the_same_of_two_losses_is_said_once():
    assert words(lines(policy=KNOWN, value=KNOWN)).count("larger than it needs to be") == 1
    assert "policy and value: a step makes" in words(lines(policy=KNOWN, value=KNOWN))


def test_a_known_noise_scale_above_the_batch_advises_a_larger_one():
    large = moments(1, 0.1, trace=123_456)
    assert "growing the batch towards 120,000 saves steps" in words(lines(policy=large, value=large))


def test_a_batch_inside_the_interval_is_balanced():
    near = moments(1, 0.1, trace=2048)
    assert "the batch is about where steps and transitions are balanced" in words(lines(policy=near, value=near))


# What advice may rest on


@pytest.mark.parametrize("shape", [(16, 128), (8, 2048), (4, 1000), (8, 20), (1, 5)])
@pytest.mark.parametrize("noise_scale", [0.12, 3.0, 41.0, 126.4, 999.0])
def test_no_advice_names_a_batch_below_one_environments_rollout(noise_scale, shape):
    text = words(lines_of(moments(1, 0.001, noise_scale), shape))
    named = re.findall(r"be: ([\d,.]+) transitions would|towards ([\d,.]+) saves|to ([\d,.]+) or more", text)
    for number in (float(one.replace(",", "")) for found in named for one in found if one):
        assert number >= shape[1]
    if noise_scale < shape[1]:
        assert not named
        if noise_scale < math.prod(shape) / 2:
            flag = re.search(
                r"below the [\d,]+ transitions of one environment, the smallest batch .* --num-steps (\d+)\.", text
            )
            assert flag
            assert 1 <= int(flag[1]) < shape[1]


def lines_of(measured: GradientMoments, shape: tuple[int, int]) -> list[str]:
    return summary_lines(run_of(list(range(1, 81)), measured), ["policy"], shape=shape, unit="environment")


@pytest.mark.parametrize("every", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize("num_updates", [1, 2, 9, 39, 40, 41, 60, 100, 161, 777, 4000])
def test_advice_rests_on_20_measurements_of_the_second_half_or_names_the_flags_that_bring_them(num_updates, every):
    made = run_of(list(range(1, num_updates + 1, every)), KNOWN)
    text, number = advice(made), len(made.second_half("policy"))
    if number >= 20:
        assert "a step makes" in text
        assert "--" not in text
        return
    assert "a step makes" not in text
    assert f"no advice yet, as the second half of the run has {number} of the 20 measurements that it takes" in text
    interval = int(re.search(r"--measure-every (\d+)", text)[1])
    longer = re.search(r"--total-transitions (\d+)", text)
    length = int(longer[1]) // 2048 if longer else max(made.updates)
    again = run_of(list(range(1, length + 1, interval)), KNOWN)
    assert "a step makes" in advice(again), "what the text says to type brings the advice"


def test_the_whole_run_gives_no_advice_on_its_second_half():
    made = run_of([*range(1, 40), 100, 200], KNOWN)
    assert "no advice yet" in advice(made)
    undetermined = run_of(list(range(1, 41)), HOPELESS, first=moments(1e6, 0.1, 100.0))
    text = summary_lines(undetermined, ["policy"], shape=(16, 128), unit="environment")
    assert "no advice yet, as the noise scale is undetermined" in words(text, "policy")
    assert "half the progress" not in words(text)


def test_a_start_that_carries_the_whole_runs_number_is_named():
    made = run_of(list(range(1, 81)), KNOWN, first=moments(1000, 0.1))
    # 1 000 of 1 079
    said = " ".join(" ".join(summary_lines(made, ["policy"], shape=(16, 128), unit="environment")).split())
    assert (
        "policy: the whole run's number is that of its start; the first 8 of 80 measurements carry 93% of Σ|G|²" in said
    )
    assert "of its start" not in words(lines(policy=KNOWN, value=BOUND))
    numbers = summary_numbers(made, ["policy"], 2048)
    assert numbers["noise/policy/late/efficiency"] == pytest.approx(2048 / 3048)
    assert numbers["noise/policy/whole/efficiency"] is None


def test_numbers_of_fewer_than_20_measurements_say_nothing_of_the_batch():
    numbers = summary_numbers(run_of(list(range(1, 41, 2)), KNOWN), ["policy"], 2048)
    assert (numbers["noise/policy/late/num_measurements"], numbers["noise/policy/whole/num_measurements"]) == (10, 20)
    assert numbers["noise/policy/late/noise_scale"] == pytest.approx(1000)
    assert [numbers[f"noise/policy/late/efficiency{end}"] for end in ("", "_low", "_high")] == [None] * 3
    assert numbers["noise/policy/whole/efficiency"] == pytest.approx(2048 / 3048)


def test_sums_over_updates_count_as_many_and_need_a_longer_run():
    trained = PooledMoments.of([KNOWN] * 3)
    text = words(
        summary_lines(History([{"trained": trained}] * 4), ["trained"], shape=(16, 5), unit="environment", length=4000),
        "trained",
    )
    # 6 of 20 in the second half: 20/6·4 000 = 13 333
    assert "has 6 of the 20 measurements that it takes; --total-transitions 14000 brings them" in text
    flags = Flags(length="--max-epochs", measure_every=None, smaller_batch="--batch-size")
    text = advice(run_of([1, 2, 3], KNOWN), (32,), flags=flags, length=1.5)
    assert re.search(r"--max-epochs \d+ brings them", text)
    assert "--measure-every" not in text


def test_a_lower_bound_is_told_as_one_and_what_is_missing_is_named():
    text = lines(policy=BOUND, value=KNOWN)
    assert "[355, ∞)" in line(text, "policy")
    # at most 1/(1 + 355/2048) = 85 %
    assert "at most 85% of a noiseless step's progress" in words(text, "policy")
    # (1.96·0.894/1)²·20 = 61.5; 40 updates have 20 in their half, so that 124 · 2 048 = 253 952 transitions are needed
    assert (
        "an upper bound needs about 62 measurements in the second half, which has 20: --measure-every 1 with "
        "--total-transitions 260000 brings them" in words(text, "policy")
    )
    larger = words(lines(policy=moments(1, 4, trace=1e7), value=KNOWN), "policy")
    assert "growing the batch to 3,600,000 or more would pay" in larger


def test_a_negative_squared_gradient_has_a_bound_without_a_point_and_needs_at_least_so_many():
    text = lines(policy=NEGATIVE, value=KNOWN)
    assert line(text, "policy").split()[1].startswith("[1,2")
    # largest plausible |G|² −1 + 1.96·0.894 = 0.753: (1.753/0.753)²·20 = 108.4
    assert "an upper bound needs at least about 109 measurements" in words(text, "policy")


def test_what_is_undetermined_is_called_so_and_gives_no_number():
    text = lines(policy=HOPELESS, value=KNOWN)
    assert line(text, "policy").split()[:2] == ["policy", "undetermined"]
    assert (
        "policy: no advice yet, as the noise scale is undetermined; any bound is out of reach, as the gradient is not "
        "clear of its noise at all: --total-transitions 330000 would tell more" in words(text)
    )


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
    assert rounded(value) == words
