"""The agents that configurations describe: one architecture, whatever the precision."""

from contextlib import closing

import pytest
import torch

from agents.config import TrainConfig, resolved
from agents.environments import make_environments
from agents.models import make_model


def first_gradients(algo, precision):
    """Parameters before the first update, and the gradient that the first optimiser step gets."""
    told = {"algo": algo, "precision": precision, "num_envs": 8, "num_steps": 5, "num_threads": 1, "wandb": "disabled"}
    if algo == "ppo":
        told |= {"num_minibatches": 1, "num_epochs": 1}
    config = resolved(TrainConfig(game="breakout", total_transitions=40, **told))
    with closing(make_environments(config, seed=0)) as environments:
        model = make_model(config, environments, "cpu")
        before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
        gradients: dict[str, torch.Tensor] = {}

        def keep(optimizer, *_):
            gradients.update({name: value.grad.clone() for name, value in model.policy.named_parameters()})

        model.policy.optimizer.register_step_pre_hook(keep)
        model.learn(40)
    return before, gradients


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_bfloat16_is_the_same_network_with_the_same_parameters_at_the_start(algo):
    before, before_16 = (first_gradients(algo, precision)[0] for precision in ("float32", "bfloat16"))
    assert before.keys() == before_16.keys()
    assert all(torch.equal(before[name], before_16[name]) for name in before)


def test_its_gradient_is_nearly_that_of_float32():
    """Of A2C's: PPO normalises the first advantages, which are all rounding there."""
    of_float32, of_bfloat16 = (first_gradients("a2c", precision)[1] for precision in ("float32", "bfloat16"))
    for name, gradient in of_float32.items():
        assert of_bfloat16[name].dtype == torch.float32
        error = (of_bfloat16[name] - gradient).norm() / gradient.norm()
        assert 1e-5 < error < 0.25, name
