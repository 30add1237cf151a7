"""The noise scale in which every update counts alike: by hand, against a slow oracle, and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.oracles import Float64

from rlgns import GradientMoments, History, PooledMoments, moments_from_groups, noise_scale
from rlgns.noise.moment_records import measurement_from_record, record_of
from rlgns.noise.update_weights import weighted_by_update, weighted_in_turn

SIZE = 5
"""Examples in a group."""


def groups(seed: int, num_groups: int = 6, mean: float = 0.3) -> Float64:
    return np.random.default_rng(seed).normal(mean, 1.0, (num_groups, 4))


def test_each_pair_is_weighted_by_the_groups_that_are_not_in_it():
    gradients, typical, K = groups(0), 30.0, 6
    x, y = [], []
    for k in range(K):
        for j in range(K):
            if j != k:
                others = moments_from_groups(np.delete(gradients, [k, j], axis=0), SIZE)
                weight = 2 / ((others.trace_covariance + typical) / SIZE)
                x.append(weight * gradients[k] @ gradients[j] / SIZE)
                y.append(weight * ((gradients[k] - gradients[j]) ** 2).sum() / 2)
    moments = weighted_by_update(moments_from_groups(gradients, SIZE), typical)
    assert (moments.relative_sq_norm, moments.relative_trace) == pytest.approx((np.mean(x), np.mean(y)), rel=1e-12)


def test_scaling_the_loss_of_one_update_changes_neither_part():
    moments = moments_from_groups(groups(0), SIZE)
    scaled = weighted_by_update(moments_from_groups(100 * groups(0), SIZE), 1e4 * 30.0)
    alone = weighted_by_update(moments, 30.0)
    assert scaled.relative_sq_norm == pytest.approx(alone.relative_sq_norm, rel=1e-9)
    assert scaled.relative_trace == pytest.approx(alone.relative_trace, rel=1e-9)


@pytest.mark.parametrize(("num_groups", "typical"), [(3, 1.0), (6, 0.0), (6, math.nan)])
def test_a_measurement_without_others_to_compare_with_stays_unweighted(num_groups, typical):
    moments = moments_from_groups(groups(0, num_groups), SIZE)
    assert math.isnan(weighted_by_update(moments, typical).relative_sq_norm)


def test_an_update_without_any_gradient_is_one_without_signal():
    silent = weighted_by_update(moments_from_groups(np.zeros((6, 4)), SIZE), 30.0)
    assert (silent.relative_sq_norm, silent.relative_trace) == (0, 0)


def test_a_history_weights_as_a_sequence_does_and_its_records_hold_the_weights():
    measurements = [moments_from_groups(groups(seed), SIZE) for seed in range(12)]
    history = History()
    for update, each in enumerate(measurements):
        history.add({"policy": each}, update + 1)
    assert history.moments("policy") == weighted_in_turn(measurements)
    records = [record_of(m) | {"progress/steps": u} for m, u in zip(history.measurements, history.updates, strict=True)]
    assert History.from_records(records) == history
    assert history.noise_scale("policy") == noise_scale(measurements)


def test_sums_merge_and_are_read_back():
    weighted = weighted_in_turn([moments_from_groups(groups(seed), SIZE) for seed in range(30)])
    pooled = PooledMoments.of(weighted[:11]) + PooledMoments.of(weighted[11:])
    assert measurement_from_record(record_of({"trained": pooled}))["trained"] == pooled
    alone = noise_scale(pooled)
    assert alone.weighting == "updates"
    assert (alone.num_measurements, pooled.relative_count) == (30, 29)  # the first has none before it
    assert alone.point == pytest.approx(noise_scale(weighted).point, rel=1e-12)


@pytest.mark.parametrize("num_sums", range(1, 13))
@pytest.mark.parametrize("method", [None, "rollouts", "groups"])
def test_any_number_of_sums_gives_the_same_number_and_an_interval(num_sums, method):
    weighted = weighted_in_turn([moments_from_groups(groups(seed), SIZE) for seed in range(30)])
    sums = [PooledMoments.of(weighted[i::num_sums]) for i in range(num_sums)]
    scale = noise_scale(sums, method=method)
    assert scale.point == pytest.approx(noise_scale(weighted).point, rel=1e-12)
    assert 0 < scale.low < scale.point < scale.high


def test_records_from_before_keep_the_ratio_of_sums():
    moments = [replace(moments_from_groups(groups(seed), SIZE), gram=None) for seed in range(30)]
    new_keys = ("relative", "unbiased", "largest")
    record = record_of({"policy": moments[0]})
    old = {key: value for key, value in record.items() if not any(word in key for word in new_keys)}
    assert isinstance(measurement_from_record(old)["policy"], GradientMoments)
    pooled = record_of({"trained": PooledMoments.of(moments)})
    old = {key: value for key, value in pooled.items() if not any(word in key for word in new_keys)}
    scale = noise_scale(measurement_from_record(old)["trained"])
    assert scale.weighting == "sq_norm"
    assert math.isfinite(scale.point)


def measurements_of_unequal_updates(seed: int, num: int, noise_scale: float) -> list[GradientMoments]:
    """Updates in 16 groups of one example whose gradients are as large as e^±2, at a constant noise scale.

    Noise is Gaussian in two directions.
    """
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(num, 16, 2)) / 2**0.5 + [noise_scale**-0.5, 0.0]
    gradients *= np.exp(rng.normal(size=num))[:, None, None]
    return [moments_from_groups(each) for each in gradients]


def test_unequal_updates_are_averaged_alike_and_the_interval_is_finite_and_covers():
    # B_simple = B = 16. 200 repetitions at n = 60: a coverage of 0.95 has a standard error of 0.015, so that 0.88 is
    # 4.5 of them below it.
    scales = [noise_scale(measurements_of_unequal_updates(seed, 60, 16.0)) for seed in range(200)]
    assert np.mean([scale.low <= 16.0 <= scale.high for scale in scales]) > 0.88
    assert np.mean([scale.state == "interval" for scale in scales]) > 0.9
