"""The agents that configurations describe have the same architecture in every precision."""

from contextlib import closing, nullcontext

import pytest
import torch

import rlgns.agents.collecting
from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.environments import make_environments
from rlgns.agents.models import make_model, use_arithmetic
from rlgns.agents.policies import ImagePolicy


def configured(algo, precision):
    options = {
        "algo": algo,
        "precision": precision,
        "num_envs": 8,
        "num_steps": 5,
        "num_threads": 1,
        "wandb": "disabled",
    }
    if algo == "ppo":
        options |= {"num_minibatches": 1, "num_epochs": 1}
    return resolved(TrainConfig(game="breakout", total_transitions=40, **options))


def first_gradients(algo, precision):
    """Parameters before the first update, and the gradient that the first optimiser step gets."""
    config = configured(algo, precision)
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


def test_the_gradient_in_bfloat16_is_nearly_that_in_float32():
    """For A2C only: PPO normalises the first advantages, which are rounding errors there."""
    of_float32, of_bfloat16 = (first_gradients("a2c", precision)[1] for precision in ("float32", "bfloat16"))
    for name, gradient in of_float32.items():
        assert of_bfloat16[name].dtype == torch.float32
        error = (of_bfloat16[name] - gradient).norm() / gradient.norm()
        assert 1e-5 < error < 0.25, name


# --- the same numbers in less time


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_images_are_scaled_to_the_numbers_that_stable_baselines3_has(precision):
    with closing(make_environments(config := configured("a2c", precision), seed=0)) as environments:
        policy = make_model(config, environments, "cpu").policy
    assert isinstance(policy, ImagePolicy)
    images = torch.randint(0, 256, (37, 4, 84, 84), dtype=torch.uint8)
    before = images.clone()
    for ordered in (images, images.contiguous(memory_format=torch.channels_last)):
        features = policy.extract_features(ordered)
        assert torch.equal(features, super(ImagePolicy, policy).extract_features(ordered))
        assert features.std() > 0
    assert torch.equal(images, before)


def test_images_of_other_types_than_uint8_are_left_to_stable_baselines3():
    with closing(make_environments(config := configured("a2c", "float32"), seed=0)) as environments:
        policy = make_model(config, environments, "cpu").policy
    images = 255 * torch.rand(3, 4, 84, 84)
    before = images.clone()
    assert torch.equal(policy.extract_features(images), super(ImagePolicy, policy).extract_features(images))
    assert torch.equal(images, before)


def test_casts_of_parameters_that_are_cached_over_a_rollout_are_of_the_present_parameters(monkeypatch):
    """Three updates in bfloat16, bitwise the same with and without cached casts."""

    def parameters_after_three_updates():
        with closing(make_environments(config := configured("a2c", "bfloat16"), seed=0)) as environments:
            model = make_model(config, environments, "cpu")
            model.learn(120)
        return list(model.policy.parameters())

    cached = parameters_after_three_updates()
    monkeypatch.setattr(rlgns.agents.collecting, "_cached_parameter_casts", lambda _: nullcontext())
    assert all(torch.equal(a, b) for a, b in zip(cached, parameters_after_three_updates(), strict=True))


# --- arithmetic


def test_tensorfloat32_is_refused_where_the_device_has_none():
    config = configured("a2c", "tensorfloat32")
    with (
        closing(make_environments(config, seed=0)) as environments,
        pytest.raises(ValueError, match="runs on cpu; use"),
    ):
        make_model(config, environments, "cpu")


def test_float32_means_float32_also_after_a_model_of_less_exact_arithmetic():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        use_arithmetic("float32", "cpu")
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_products_are_rounded_as_the_precision_says():
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).double()
    exact, errors = a @ a, {}
    for precision in ("float32", "tensorfloat32"):
        use_arithmetic(precision, "cuda")
        rough = (a.float().cuda() @ a.float().cuda()).cpu().double()
        errors[precision] = float((rough - exact).norm() / exact.norm())
    use_arithmetic("float32", "cuda")
    assert errors["float32"] < 1e-6
    assert 1e-5 < errors["tensorfloat32"] < 1e-2
