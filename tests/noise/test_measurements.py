import json
import math

import numpy as np
import pytest
from support.oracles import spectrum

from rlgns import GradientMoments, moments_from_groups, noise_scale
from rlgns.noise.history import History
from rlgns.noise.moment_records import measurement_from_record, noise_scale_record, record_of
from rlgns.runs.records import plain

NOISE = spectrum(np.ones(20), 100)


def moments(seed: int = 0, K: int = 8) -> GradientMoments:
    return moments_from_groups(NOISE.groups(np.random.default_rng(seed), K, group_size=32), 32)


def with_trace(trace: float) -> GradientMoments:
    """|G|² = 1 and this tr Σ at b = 8, B = 64: squared norms 1 + tr Σ/b and 1 + tr Σ/B."""
    return GradientMoments(1 + trace / 8, 1 + trace / 64, 8, 64, 8, 0.01, 0.01, 0.0)


def through_json(record: dict) -> dict:
    return json.loads(json.dumps(plain(record), allow_nan=False))


def test_a_measurement_is_rebuilt_from_its_record_bit_by_bit():
    measurement = {"policy": moments(0), "value/by_transition": moments(1), "layers/trunk.0/value": moments(2)}
    assert measurement_from_record(through_json(record_of(measurement))) == measurement


def test_moments_without_variances_come_back_without_variances():
    two_groups = moments(K=2)
    record = through_json(record_of({"policy": two_groups}))
    assert record["noise/policy/sq_norm_variance"] is None
    (back,) = measurement_from_record(record).values()
    assert math.isnan(back.sq_norm_variance)
    assert math.isnan(back.trace_covariance_variance)
    assert math.isnan(back.covariance)
    assert (back.sq_norm, back.trace_covariance) == (two_groups.sq_norm, two_groups.trace_covariance)
    assert isinstance(back.num_groups, int)


def test_a_record_shows_the_two_estimates_beside_what_rebuilds_them():
    record = record_of({"policy": moments()})
    assert record["noise/policy/sq_norm"] == moments().sq_norm
    assert record["noise/policy/trace_covariance"] == moments().trace_covariance
    assert all(key.startswith("noise/policy/") for key in record)


def test_other_keys_of_a_record_are_ignored():
    record = {
        "progress/steps": 3,
        "noise/policy/noise_scale": 5.0,
        "event": "resume",
        **record_of({"value": moments()}),
    }
    assert measurement_from_record(record) == {"value": moments()}
    assert measurement_from_record({"progress/steps": 3, "noise/policy/noise_scale": 5.0}) == {}


def test_a_history_is_the_same_from_records_as_from_measurements():
    measurements = [{"policy": moments(seed), "value": moments(seed + 50)} for seed in range(5)]
    records = [{"progress/steps": 0}]
    for measurement in measurements:
        records += [through_json(record_of(measurement)), {"rollout/episode_return": 1.0}]
    assert History.from_records(records) == History(measurements)


def test_a_window_holds_the_last_measurements_of_the_requested_loss():
    history = History([{"policy": moments(0)}, {"policy": moments(1), "value": moments(2)}, {"value": moments(3)}])
    assert history.moments("policy") == [moments(0), moments(1)]
    assert history.moments("policy", last=1) == [moments(1)]
    assert history.moments("policy", last=9) == [moments(0), moments(1)]
    assert history.moments("entropy") == []


def test_the_noise_scale_of_a_window_pools_its_measurements():
    measured = [moments(seed) for seed in range(6)]
    history = History([{"policy": m} for m in measured])
    assert history.noise_scale("policy") == noise_scale(measured)
    assert history.noise_scale("policy", last=4) == noise_scale(measured[2:])
    assert history.noise_scale("policy", 4, 0.8, "rollouts") == noise_scale(measured[2:], 0.8, "rollouts")
    assert history.noise_scale("value") is None
    assert History().noise_scale("policy") is None


def test_the_design_effect_is_a_ratio_of_sums_over_measurements_that_hold_both_units():
    # the second measurement has groups of environments only: (12 + 30)/(c₀ + c₀'), not a mean of ratios
    history = History(
        [
            {"value": with_trace(12), "value/by_transition": with_trace(2)},
            {"value": with_trace(1000)},
            {"value": with_trace(30), "value/by_transition": with_trace(4)},
        ]
    )
    size = with_trace(12).large_batch_size
    first, last = ((size - 1) * 2 + 12) / size, ((size - 1) * 4 + 30) / size
    assert history.design_effect("value").point == pytest.approx(42 / (first + last))
    assert history.design_effect("value", last=1).point == pytest.approx(30 / last)


def test_there_is_no_design_effect_without_both_units():
    assert math.isnan(History([{"value": with_trace(12)}]).design_effect("value").point)
    assert math.isnan(History().design_effect("value").point)
    negative = History([{"value": with_trace(12), "value/by_transition": with_trace(-12)}])
    assert math.isnan(negative.design_effect("value").point)


def test_an_estimate_is_recorded_with_interval_state_and_number_of_measurements():
    scale = noise_scale([moments(seed) for seed in range(20)])
    assert noise_scale_record("policy", scale) == {
        "noise/policy/noise_scale": scale.point,
        "noise/policy/noise_scale_low": scale.low,
        "noise/policy/noise_scale_high": scale.high,
        "noise/policy/noise_scale_state": "interval",
        "noise/policy/noise_scale_weighting": "updates",
        "noise/policy/num_measurements": 20,
    }


def test_unbounded_and_undefined_values_are_null_in_the_file():
    bound = noise_scale(GradientMoments(10.0, 1.0, 32, 256, 8, 1.0, 1.0, 0.0))  # |G|² < 0
    record = through_json(noise_scale_record("policy", bound))
    assert record["noise/policy/noise_scale"] is None
    assert record["noise/policy/noise_scale_low"] > 0
    assert record["noise/policy/noise_scale_high"] is None
    assert record["noise/policy/noise_scale_state"] == "lower bound"


def test_the_second_half_is_that_of_the_updates_and_not_of_the_measurements():
    history = History()
    for update in (1, 3, 5, 7, 9, 50, 51, 100):
        history.add({"policy": with_trace(update)}, update)
    history.add({"value": with_trace(1)}, 100)
    assert [round(m.trace_covariance) for m in history.second_half("policy")] == [51, 100]
    assert history.shares("policy")[0] == 0.005
    records = [
        {"progress/steps": n, **record_of(m)} for n, m in zip(history.updates, history.measurements, strict=True)
    ]
    again = History.from_records([{"event": "start"}, *map(through_json, records)])
    assert again.updates == history.updates
    assert again.second_half("policy") == history.second_half("policy")


def test_where_updates_are_not_known_the_second_half_is_that_of_the_measurements():
    history = History([{"policy": with_trace(n)} for n in range(9)])
    assert [round(m.trace_covariance) for m in history.second_half("policy")] == [5, 6, 7, 8]
    assert history.shares("policy") == [(n + 0.5) / 9 for n in range(9)]
    history.add({"policy": with_trace(9)}, 40)  # one of ten
    assert len(history.second_half("policy")) == 5


def test_a_loss_that_was_measured_early_only_has_no_moments_in_the_second_half():
    history = History()
    for update, name in ((1, "policy"), (2, "policy"), (10, "value")):
        history.add({name: with_trace(1)}, update)
    assert history.second_half("policy") == []
    assert len(history.second_half("value")) == 1
