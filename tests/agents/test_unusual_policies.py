"""Policies that do not simply call their layers are measured and trained correctly."""

import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from support.environments import RandomWalks
from torch import Tensor

from rlgns.agents import A2C, NoiseScaleCallback


def on_short_rollouts(algorithm, **options):
    return algorithm("MlpPolicy", RandomWalks(8, seed=0), n_steps=8, seed=0, device="cpu", **options)


@pytest.mark.filterwarnings("ignore")  # warnings of torch.compile about itself
def test_a_policy_with_a_compiled_part_is_measured_as_it_is_without():
    torch._dynamo.reset()
    histories = []
    for compiled in (False, True):
        model = on_short_rollouts(stable_baselines3.PPO)
        if compiled:
            model.policy.mlp_extractor = torch.compile(model.policy.mlp_extractor, backend="eager")
        noise = NoiseScaleCallback(measure_every=1)
        model.learn(2 * 8 * 8, callback=noise)
        histories.append(noise.history.measurements)
    for plain, other in zip(*histories, strict=True):
        for loss, moments in plain.items():
            assert other[loss].sq_norm == pytest.approx(moments.sq_norm, rel=1e-4, abs=1e-6 * moments.small_sq_norm)


class CallsForward(FlattenExtractor):
    """A features extractor that calls the `forward` of its layer, and not the layer."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space)
        self.net = torch.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(self.net.forward(super().forward(observations)))


@pytest.mark.parametrize("num_groups", [None, 4])
def test_a2c_trains_an_extractor_that_calls_forward_as_stable_baselines3_does(num_groups):
    trained = []
    for algorithm in (stable_baselines3.A2C, A2C):
        model = on_short_rollouts(algorithm, policy_kwargs={"features_extractor_class": CallsForward})
        model.num_groups = num_groups
        model.learn(3 * 8 * 8)
        trained.append([p.detach().clone() for p in model.policy.features_extractor.parameters()])
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
