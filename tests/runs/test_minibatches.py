"""PPO's minibatch noise given the rollout: by hand, and against minibatches drawn from a known rollout."""

import numpy as np
import pytest

from rlgns.noise.grouping import transition_groups
from rlgns.noise.history import History
from rlgns.noise.moments import GradientMoments, moments_from_groups
from rlgns.runs.minibatches import minibatch_noise, nearest_num_minibatches


def at_random(noise: float, *, batch_size: int = 1024, num_groups: int = 8) -> GradientMoments:
    """Moments of a rollout split by transition with |ḡ|² = 1 and c₀ = `noise`."""
    b = batch_size / num_groups
    return GradientMoments(1 + noise * (1 / b - 1 / batch_size), 1.0, b, batch_size, num_groups)


def history(**losses: list[GradientMoments]) -> History:
    number = max(map(len, losses.values()))
    return History([{f"{loss}/by_transition": each[i] for loss, each in losses.items()} for i in range(number)])


def test_every_measurement_counts_alike_and_the_ratio_is_inverted_last():
    # the second half: 1/b = mean of 1/100 and 1/300 = 1/150
    noise = minibatch_noise(history(total=[at_random(9)] * 4 + [at_random(100), at_random(300)] * 2))
    assert noise.point == pytest.approx(150)
    assert (noise.num_measurements, noise.loss) == (4, "total")
    assert noise.low < 150 < noise.high


def test_the_loss_with_more_noise_decides():
    noise = minibatch_noise(history(total=[at_random(2)] * 10, policy=[at_random(200)] * 10))
    assert (noise.loss, noise.point) == ("policy", pytest.approx(200))


def test_too_few_splits_or_a_variance_that_is_not_positive_say_nothing():
    assert minibatch_noise(history(total=[at_random(100)] * 6)) is None
    assert minibatch_noise(history(total=[at_random(100)] * 9 + [at_random(-1)])) is None
    assert minibatch_noise(History()) is None


def test_at_the_recommended_minibatch_noise_equals_signal_within_the_rollout():
    # A rollout of M = 1 024 transitions whose gradients have log-normal norms: the mean squared distance between the
    # gradient of a minibatch drawn without replacement and the rollout's own is |ḡ|² at M/m = 1 + M/b.
    rng = np.random.default_rng(0)
    M = 1024
    norms = np.exp(rng.normal(size=(M, 1)) * 0.7)
    g = norms * (0.5 + rng.normal(size=(M, 12)))
    mean = g.mean(0)
    splits = [
        moments_from_groups(g[groups].mean(1), M / 8) for groups in (transition_groups(M, 8, rng) for _ in range(400))
    ]
    noise = minibatch_noise(history(total=splits))
    m = round(1 / (1 / noise.point + 1 / M))
    draws = np.array([((g[rng.permutation(M)[:m]].mean(0) - mean) ** 2).sum() for _ in range(4000)])
    error = np.hypot(draws.std() / np.sqrt(len(draws)), (noise.high - noise.low) / 4 / noise.point * (mean @ mean))
    # the minibatch is a whole number of transitions, which shifts its variance by less than 1/(2m)
    assert abs(draws.mean() - mean @ mean) < 5 * error + (mean @ mean) / m


def test_rollouts_of_another_size_have_another_mean_gradient():
    noise = minibatch_noise(history(total=[at_random(100)] * 8))
    assert noise.at(1024, 1024, 500) == pytest.approx(100)
    # |ḡ|² falls from |G|²(1 + 500/1000) to |G|²(1 + 500/∞)
    assert noise.at(1000, 1e12, 500) == pytest.approx(150)


@pytest.mark.parametrize(
    ("noise", "batch_size", "most", "number"),
    [(1024, 1024, 16, 2), (341.0, 1024, 16, 4), (100, 1024, 16, 8), (1, 1024, 16, 16), (1e9, 1024, 16, 1),
     (100, 1000, 64, 8), (1, 2, 64, 1), (10, 35, 64, 1)],
)  # fmt: skip
def test_the_number_of_minibatches_divides_the_rollout(noise, batch_size, most, number):
    found = nearest_num_minibatches(noise, batch_size, most)
    assert batch_size % found == 0
    assert found == number
