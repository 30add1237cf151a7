"""The recommendation in numbers and in words: known answers, bounds, and what the text says to type."""

import math
import re
from dataclasses import replace

import pytest

from rlgns import GradientMoments, PooledMoments
from rlgns.noise.history import History
from rlgns.noise.scale import NoiseScale
from rlgns.runs.batch_advice import BatchAdvisor, Flags
from rlgns.runs.minibatches import MinibatchNoise
from rlgns.runs.recommendation import confidence, example_ratio, recommend, update_ratio
from rlgns.runs.recommendation_words import box_lines
from rlgns.runs.speeds import Speeds, chosen_count, counts_to_try
from rlgns.runs.trained_batch import TrainedBatch

A2C = TrainedBatch(
    count=16, length=5, unit="environment", examples="transitions", count_flag="--num-envs", length_flag="--num-steps",
    smallest=4, multiple_of=1, learning_rate=7e-4, rate_exponent=0.5, scales_rate=False, vf_coef=0.25,
)  # fmt: skip
PPO = replace(A2C, count=16, length=128, num_minibatches=4)
IMAGES = replace(
    A2C, count=64, length=1, unit="example", examples="images", count_flag="--batch-size", length_flag="",
    learning_rate=0.1, rate_exponent=1.0, vf_coef=None,
)  # fmt: skip


def measured(noise_scale: float, error: float = 0.01, *, sq_norm: float = 1.0) -> GradientMoments:
    """Moments with this noise scale and this jackknife error of |G|², at K = 8 groups of 10 examples."""
    trace = noise_scale * abs(sq_norm)
    return GradientMoments(sq_norm + trace / 10, sq_norm + trace / 80, 10, 80, 8, error**2, 0.0, 0.0)


def history(n: int = 200, **losses: GradientMoments) -> History:
    made = History()
    for update in range(1, n + 1):
        made.add(dict(losses), update)
    return made


def scale(low: float, point: float, high: float, n: int = 938) -> NoiseScale:
    return NoiseScale(point, low, high, 1.0, point, 1.0, 0.1, n, 80.0, 0.95, "groups")


def box(made: History, batch: TrainedBatch = A2C, **options: object) -> list[str]:
    remedies = BatchAdvisor(batch.size, Flags(), max(made.updates, default=1), None)
    return box_lines(recommend(made, batch), made, remedies, run="runs/one", **options)


def text(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


# --- numbers


def test_ratios_are_those_of_the_formula_by_hand():
    # (1 + 198/80)/(1 + 198/320) = 3.475/1.61875 = 2.1467; (1 + 1144/80)/(1 + 1144/320) = 15.3/4.575 = 3.3443
    updates = update_ratio(80, 320, scale(198, 331, 1144))
    assert (updates.low, updates.high) == (pytest.approx(2.14672, rel=1e-5), pytest.approx(3.34426, rel=1e-5))
    # (320 + 198)/(80 + 198) = 1.8633; (320 + 1144)/(80 + 1144) = 1.1961
    examples = example_ratio(80, 320, scale(198, 331, 1144))
    assert (examples.low, examples.high) == (pytest.approx(1.19608, rel=1e-5), pytest.approx(1.86331, rel=1e-5))


@pytest.mark.parametrize("high", [math.inf, 500.0])
def test_updates_times_batch_are_examples(high):
    known = scale(100, 200, high)
    updates, examples = update_ratio(80, 640, known), example_ratio(80, 640, known)
    assert examples.low == pytest.approx(640 / 80 / updates.high)
    assert examples.high == pytest.approx(640 / 80 / updates.low)


def test_a_small_batch_grows_to_the_noise_scale_in_environments_and_keeps_its_steps():
    advice = recommend(history(total=measured(331)), A2C)
    assert (advice.verdict, advice.count, advice.size) == ("larger", 64, 320)
    # 7e-4·√((1 + 331/80)/(1 + 331/320)) = 7e-4·√(5.1375/2.034375)
    assert advice.learning_rate == pytest.approx(7e-4 * math.sqrt(5.1375 / 2.034375))


def test_a_large_batch_shrinks_and_its_learning_rate_with_it():
    advice = recommend(history(total=measured(300)), replace(A2C, count=1024))
    assert (advice.verdict, advice.count) == ("smaller", 64)
    assert advice.learning_rate < 7e-4
    assert advice.examples.high < 1 < 1 / advice.updates.high


@pytest.mark.parametrize("noise_scale", [41, 80, 150])
def test_a_batch_within_a_factor_of_two_is_kept_with_its_learning_rate(noise_scale):
    advice = recommend(history(total=measured(noise_scale)), A2C)
    assert (advice.verdict, advice.count, advice.learning_rate) == ("keep", 16, 7e-4)


def test_a_batch_inside_a_wide_interval_is_kept():
    made = history(n=40, total=measured(331, error=1.8))
    advice = recommend(made, replace(A2C, count=160))
    assert 2 * advice.scale.point < 800 < advice.scale.high < math.inf
    assert advice.verdict == "keep"


@pytest.mark.parametrize("noise_scale", [1e-3, 0.12, 3, 17, 80, 333, 5e4, 1e7])
@pytest.mark.parametrize("batch", [A2C, PPO, IMAGES, replace(A2C, count=4), replace(IMAGES, multiple_of=8)])
def test_a_recommended_batch_is_never_below_the_smallest_and_splits_into_groups(noise_scale, batch):
    advice = recommend(history(total=measured(noise_scale)), batch)
    assert advice.count >= min(batch.smallest, batch.count)
    if advice.count != batch.count:
        assert advice.count % batch.multiple_of == 0
        rest = advice.count // batch.multiple_of
        assert rest // (rest & -rest) in (1, 3), "a power of two, or three times one"
        assert advice.count * batch.length == advice.size
        assert (advice.verdict == "larger") == (advice.count > batch.count)


def test_the_loss_that_is_trained_decides():
    trained = PooledMoments.of([measured(2000)] * 2)
    made = history(total=measured(80), policy=measured(80))
    made.measurements = [{**each, "trained": trained} for each in made.measurements]
    assert (recommend(made, A2C).loss, recommend(made, A2C).verdict) == ("trained", "larger")
    assert recommend(history(total=measured(80)), A2C).loss == "total"
    made = history(n=60, total=measured(80))  # of the trained gradient, 15 measurements lie in the second half
    made.measurements = [
        {**each, "trained": measured(80)} if i % 2 else each for i, each in enumerate(made.measurements)
    ]
    assert recommend(made, A2C).loss == "total"


def test_a_lower_bound_recommends_it_where_it_is_above_the_batch_and_nothing_below():
    above = recommend(history(total=measured(4000, error=30)), A2C)
    assert (above.scale.state, above.verdict) == ("lower bound", "larger")
    assert above.size >= above.scale.low / 1.5
    below = recommend(history(total=measured(300, error=30)), replace(A2C, count=1024))
    assert (below.verdict, below.count, below.updates) == ("unclear", 1024, None)


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (History(), "not measured"),
        (history(n=38, total=measured(331)), "too few"),
        (history(total=measured(331, 0.01, sq_norm=-1.0)), "undetermined"),
    ],
)
def test_without_a_known_noise_scale_there_is_no_other_batch(made, verdict):
    advice = recommend(made, A2C)
    assert (advice.verdict, advice.count, advice.learning_rate, advice.updates) == (verdict, 16, 7e-4, None)


def test_the_value_loss_alone_never_shrinks_the_batch_below_what_the_policy_loss_needs():
    made = history(total=measured(20), value=measured(20), policy=measured(2000))
    kept = recommend(made, PPO)
    assert (kept.verdict, kept.count) == ("keep", 16)
    assert "not than the policy loss needs" in text(box(made, PPO))
    assert "--vf-coef 0.062 (now 0.25)" in text(box(made, PPO))
    larger = recommend(made, replace(PPO, count=256))
    assert (larger.verdict, larger.count) == ("smaller", 16)
    alike = history(total=measured(20), value=measured(20), policy=measured(21))
    assert recommend(alike, PPO).swamped is None


@pytest.mark.parametrize(
    ("low", "high", "n", "words"),
    [(100, 300, 60, "good"), (100, 300, 59, "fair"), (100, 301, 500, "fair"), (100, 1000, 20, "fair"),
     (100, 1001, 500, "low"), (100, math.inf, 500, "low"), (0, 10, 500, "low"), (100, 200, 19, "low")],
)  # fmt: skip
def test_confidence_follows_from_the_interval_and_the_number_of_measurements(low, high, n, words):
    assert confidence(scale(low, 150, high, n)) == words


# --- words


@pytest.mark.parametrize("n", [200, 10])
def test_training_decides_where_it_knows_and_a_probe_of_the_last_policy_where_it_does_not(n):
    made = history(n, total=measured(300.0))
    at_the_end = replace(scale(2_000, 3_000, 5_000, 40), method="frozen")
    advice = recommend(made, A2C, probed={"total": at_the_end})
    if n == 200:
        assert advice.scale.high < 1_000
        assert advice.probed is at_the_end
        assert "at the last policy alone a probe found 3,000 [2,000, 5,000] transitions" in text(
            box_lines(advice, made, BatchAdvisor(80, Flags(), n, None), run="runs/one")
        )
    else:
        assert advice.scale is at_the_end
        assert advice.probed is None


def test_the_box_says_what_to_type_and_why():
    lines = box(history(total=measured(331, error=1.0)))
    said = text(lines)
    assert lines[0] == "Your batch, 16 environments × 5 steps = 80 transitions, is small for this task."
    assert "Try --num-envs 64 --num-steps 5 --learning-rate 0.0011 (320 transitions)" in said
    assert re.search(r"Expect \d\.\d–\d\.\d times fewer updates for \d\.\d–\d\.\d times the transitions", said)
    assert re.search(r"noise scale of the total loss 331 \[\d+, \d+\] transitions, 100 measurements: good", said)
    assert "which batch takes the least time: rlgns show runs/one --minimise time" in said
    assert said.endswith("environments against rollout length: rlgns probe runs/one --surface")


def test_a_lower_bound_is_called_one_once_and_what_is_missing_is_named():
    said = text(box(CASES["bound"], objective="time"))
    assert "or more transitions)" in said
    assert re.search(r"at least \d+\.?\d* times fewer updates for at most \d\.\d times the transitions", said)
    assert said.count("4,000 [") == 1
    assert re.search(r"an upper bound needs about [\d,]+ measurements in the second half, which has 100: --", said)
    assert "no batch is known to be the one for the least time here: the noise scale has no upper bound" in said
    assert "an upper bound, which a probe of the last policy may bring in minutes: rlgns probe runs/one" in said


def test_a_supervised_run_is_told_its_own_flags():
    said = text(box(history(total=measured(300)), IMAGES))
    assert "Try --batch-size 256 --learning-rate" in said
    assert "images" in said
    assert not re.search("num-envs|probe|minimise|transitions", said)


def test_a_rate_that_follows_a_rule_of_the_run_is_not_typed():
    assert "--learning-rate" not in text(box(history(total=measured(331)), replace(A2C, scales_rate=True)))


CASES = {
    "larger": history(total=measured(331, 1.0)),
    "bound": history(total=measured(4000, 30)),
    "smaller": history(total=measured(3)),
    "keep": history(total=measured(80)),
    "few": history(n=30, total=measured(331)),
    "undetermined": history(total=measured(331, 3, sq_norm=-0.1)),
    "swamped": history(total=measured(20), value=measured(20), policy=measured(2000)),
    "none": History(),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [A2C, PPO, IMAGES], ids=["a2c", "ppo", "images"])
def test_every_line_fits_80_columns_and_no_flag_is_torn_from_its_value(name, batch):
    lines = box(CASES[name], batch, speeds=Speeds({16: 1300.0, 64: 1500.0, 4: 900.0}))
    assert max(map(len, lines)) <= 80
    alone = ("--no-measure", "--surface")  # flags without a value
    assert not any(line.split()[-1].startswith("--") and not line.endswith(alone) for line in lines)


@pytest.mark.parametrize("every", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize("num_updates", [1, 2, 9, 39, 40, 41, 60, 100, 161, 777, 4000])
def test_too_few_measurements_name_the_flags_that_bring_them(num_updates, every):
    made = History()
    for update in range(1, num_updates + 1, every):
        made.add({"total": measured(331)}, update)
    number, said = len(made.second_half("total")), text(box(made))
    if number >= 20:
        assert "Try --num-envs 64" in said
        return
    assert f"the second half of the run has {number} of the 20 measurements that advice takes" in said
    interval = int(re.search(r"--measure-every (\d+)", said)[1])
    longer = re.search(r"--total-transitions (\d+)", said)
    again = History()
    for update in range(1, (int(longer[1]) // 80 if longer else max(made.updates)) + 1, interval):
        again.add({"total": measured(331)}, update)
    assert "Try --num-envs 64" in text(box(again)), "what the text says to type brings the advice"


def test_a_run_that_ended_at_its_goal_would_do_so_again():
    remedies = BatchAdvisor(80, Flags(measure_every=None, length="--max-steps"), 10, 10.0, ended_at_goal=True)
    assert remedies.missing(None, [measured(1)]).endswith(
        "--max-steps\N{NO-BREAK SPACE}40 without\N{NO-BREAK SPACE}--goals brings them"
    )


def test_a_run_that_was_stopped_before_its_length_is_to_be_continued():
    stopped = BatchAdvisor(80, Flags(), 100, None, planned=300_000, run="runs/one")
    few = history(n=20, total=measured(331))
    said = stopped.missing(few.noise_scale("total", last=10), few.moments("total"))
    assert said.replace("\N{NO-BREAK SPACE}", " ").endswith("continuing it (--resume runs/one) brings them")
    short = replace(stopped, planned=9_000)  # twice the 8 000 transitions made are needed
    assert "--resume" not in short.missing(few.noise_scale("total", last=10), few.moments("total"))


def test_the_box_says_what_its_interval_cannot_be_trusted_for():
    assert "Mind" not in text(box(history(200, total=measured(331))))
    few = text(box(history(80, total=measured(331, error=0.2))))
    assert "Mind 40 measurements are few: below 60, intervals are too narrow under heavy tails" in few
    dominated = replace(measured(331), largest_group_share=0.8)
    said = box(history(200, total=dominated))
    assert "Mind one of 8 groups of environments carries 80% of a measurement's noise" in text(said)
    assert max(map(len, said)) <= 80


def test_copies_of_environments_stand_in_the_box_with_advice_and_without():
    for number in (4, 200):
        said = text(box(history(number, total=measured(331)), copies="environments 3 and 7 are copies"))
        assert "Mind environments 3 and 7 are copies" in said


# --- time


def test_time_follows_from_transitions_and_speed_and_a_slower_way_is_called_so():
    advice = replace(
        recommend(history(total=measured(331)), A2C), scale=scale(198, 331, 1144),
        updates=update_ratio(80, 320, scale(198, 331, 1144)), examples=example_ratio(80, 320, scale(198, 331, 1144)),
    )  # fmt: skip
    # at 331: (80 + 331)/1300 against (320 + 331)/1500 seconds; at the ends 1500/1300 / 1.8633 and 1500/1300 / 1.1961
    ratio = Speeds({16: 1300.0, 64: 1500.0}).time_ratio(advice)
    assert (ratio.low, ratio.high) == (pytest.approx(0.61926, rel=1e-4), pytest.approx(0.96470, rel=1e-4))
    said = text(box_lines(advice, history(total=measured(331)), BatchAdvisor(80, Flags(), 9, None), run="r",
                          speeds=Speeds({16: 1300.0, 64: 1500.0})))  # fmt: skip
    assert "64 × 5 runs at 1,500 transitions/s against 1,300: 1.0–1.6 times longer to the same result" in said


def test_the_fastest_batch_is_the_minimum_of_the_formula():
    flat = Speeds(dict.fromkeys((4, 16, 64), 1000.0))  # speed does not grow: fewest transitions win
    steep = Speeds({count: 100.0 * count for count in (4, 16, 64)})  # it grows in proportion: fewest updates win
    assert (flat.fastest(5, 331), steep.fastest(5, 331)) == (4, 64)
    mixed = Speeds({16: 1000.0, 64: 1400.0, 256: 1600.0})
    # (80 + 331)/1000 = 0.411, (320 + 331)/1400 = 0.465, (1280 + 331)/1600 = 1.007
    assert mixed.fastest(5, 331) == 16


def test_objectives_choose_within_bounds_and_not_without_an_interval():
    advice = recommend(history(total=measured(331)), replace(A2C, count=64))
    assert chosen_count(advice, "balance", None) is None
    assert chosen_count(advice, "transitions", None) == 6  # 33 transitions, a tenth of the noise scale
    assert chosen_count(advice, "time", Speeds({16: 900.0, 64: 1000.0})) == 16
    assert all(count >= 4 and count * 5 <= 4 * 331 * 1.25 for count in counts_to_try(advice))
    for unknown in (history(total=measured(4000, 30)), CASES["swamped"], CASES["undetermined"], CASES["few"]):
        other = recommend(unknown, PPO)
        assert chosen_count(other, "time", Speeds({4: 1e6, 16: 1.0})) is None


def test_a_chosen_count_changes_the_whole_recommendation():
    made = history(total=measured(331))
    advice = recommend(made, A2C, count=32)
    assert (advice.verdict, advice.count, advice.size) == ("larger", 32, 160)
    assert advice.updates == update_ratio(80, 160, advice.scale)
    assert recommend(made, A2C, count=16).verdict == "keep"


@pytest.mark.parametrize(
    ("fixed", "number", "flags", "line"),
    [
        (False, 8, "--num-minibatches 8", "--num-minibatches 8 of 1,024 each (now 4)"),
        (False, 4, "--num-minibatches 4", "keep --num-minibatches 4 of 2,048 each"),
        (True, 8, "--minibatch-size 1024", "--minibatch-size 1024 (now 512)"),
        (True, 16, "--minibatch-size 512", "keep --minibatch-size 512"),
    ],
)
def test_minibatches_are_named_by_the_option_that_the_run_was_given(fixed, number, flags, line):
    made, batch = history(total=measured(8192)), replace(PPO, fixes_minibatch_size=fixed)
    noise = MinibatchNoise(900.0, 700.0, 1200.0, 100, "policy")
    advice = replace(recommend(made, batch), minibatch=noise, num_minibatches=number)
    assert advice.size == 8192  # and the rate is 7e-4 × ((1 + 4)/(1 + 1))^½
    closing_text = text(box_lines(advice, made, BatchAdvisor(batch.size, Flags(), 200, None), run="runs/one"))
    assert f"--learning-rate 0.0011 {flags} (8,192 transitions)" in closing_text
    assert f"Minibatches {line}: a minibatch of 900 [700, 1,200] transitions" in closing_text
