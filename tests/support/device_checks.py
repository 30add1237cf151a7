"""On a GPU: tensors are where they are used, numbers are the CPU's, and the host goes on without waiting for it.

Most of it by `simulated_gpu`, so that a machine without a GPU tells; what a real one can be asked, it is asked too.
`test_devices` runs these in a process of their own: a device cannot be plugged in once autograd has started.
"""

from collections import Counter
from contextlib import closing

import pytest
import torch
from support.simulated_gpu import DEVICE, Simulated, plug_in, waits_for_the_device
from support.supervised_tasks import random_data, small
from support.tolerances import assert_equal_to_rounding, assert_same_moments, rounded
from torch import nn
from torch.distributions import Categorical

from rlgns.agents import A2C, PPO, AtariVecEnv
from rlgns.agents.callback import NoiseScaleCallback
from rlgns.agents.policies import ImagePolicy
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.gradients.backward import group_backward
from rlgns.gradients.groups import group_grams
from rlgns.noise.history import TRAINED
from rlgns.runs.ranks import ALONE
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.learning import Learner

NUM_ENVS, NUM_PARTS, NUM_STEPS = 8, 2, 8
UPDATES = 4
FETCHED = "copy to the host in on_policy.py _finish_update"
MOMENTS = "copy to the host in grams.py layers"
ACTIONS = "copy to the host in collecting.py _send"
AT_TIME_LIMITS = "copy to the host in collecting.py add_values_at_time_limits"

DEVICES = [
    DEVICE,
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
    ),
]


plug_in()


def trained(kind, device, *, callback=None, in_updates=None, **options):
    """Breakout in games so short that some end, by themselves and by the time limit."""
    environments = AtariVecEnv(
        "breakout", NUM_ENVS, seed=5, num_threads=1, num_parts=NUM_PARTS, max_num_frames_per_episode=60
    )
    if kind is PPO:
        options |= {"batch_size": 32, "n_epochs": 2}
    with closing(environments):
        model = kind(
            ImagePolicy, environments, n_steps=NUM_STEPS, seed=3, device=device,
            rollout_buffer_class=DeviceRolloutBuffer, rollout_buffer_kwargs={"frames_once": True}, **options,
        )  # fmt: skip
        if kind is A2C:
            model.num_groups, model.measure_updates, model.grouped_every = 4, True, 2
        train = model.train

        def watched():
            with waits_for_the_device() as waits:
                train()
            if in_updates is not None:
                in_updates.append(waits)

        model.train = watched
        model.learn(UPDATES * NUM_STEPS * NUM_ENVS, callback=callback)
    return model


# --- the simulated GPU itself


def test_what_waits_is_told():
    tensor, mask = torch.arange(3.0).to(DEVICE), torch.tensor([True, False, True]).to(DEVICE)
    waiting = {
        "looking at a number": lambda: float(tensor.sum()),
        "a condition": lambda: bool(tensor.sum() > 1),
        "to the host": tensor.cpu,
        "to NumPy's list": tensor.tolist,
        "into a tensor on the host": lambda: torch.empty(3).copy_(tensor),
        "from the host": lambda: torch.ones(3).to(DEVICE),
        "from the host by assignment": lambda: tensor.__setitem__(slice(None), torch.ones(3)),
        "a mask": lambda: tensor[mask],
        "an index on the host": lambda: tensor[torch.tensor([0, 2])],
        "a shape that follows from numbers": mask.nonzero,
    }
    for what, does in waiting.items():
        with waits_for_the_device() as waits:
            does()
        assert len(waits) == 1, (what, waits)


def test_what_does_not_wait_is_not_told():
    with waits_for_the_device() as waits:
        tensor = torch.arange(3.0).to(DEVICE, non_blocking=True)
        tensor[1:].copy_(torch.ones(2), non_blocking=True)
        tensor[torch.tensor([0, 2]).to(DEVICE, non_blocking=True)] += 1
        tensor.normal_().softmax(0).sum()
    assert waits == []


def test_tensors_elsewhere_are_refused():
    there, here, index = torch.ones(3).to(DEVICE), torch.ones(3), torch.tensor([0, 2]).to(DEVICE)
    refused = {
        "a layer": lambda: nn.Linear(3, 2).to(DEVICE)(here[None]),
        "a sum": lambda: there + here,
        "values put by index": lambda: there.__setitem__(index, torch.ones(2)),
        "an index there of a tensor here": lambda: here[index],
        "a mask there of a tensor here": lambda: here.masked_select(there > 0),
    }
    for does in refused.values():
        with pytest.raises(RuntimeError, match="on the host"):
            does()


# --- the main loop


@pytest.mark.parametrize(("kind", "options"), [(A2C, {}), (A2C, {"normalize_advantage": True}), (PPO, {})])
def test_an_update_waits_once_to_be_logged(kind, options):
    in_updates = []
    trained(kind, DEVICE, in_updates=in_updates, **options)
    assert len(in_updates) == UPDATES
    for number, waits in enumerate(in_updates):
        measured = kind is A2C and number % 2 == 0
        expected = [FETCHED, *([MOMENTS] if measured else [])]
        # A2C's first update also finds out how the model treats examples, and waits for that
        own = waits[-len(expected) :] if kind is A2C and number == 0 else waits
        assert own == expected  # the second has nothing left to wait for


def test_a_rollout_waits_for_actions_and_once_for_values_at_time_limits():
    in_updates = []
    with waits_for_the_device() as waits:
        trained(A2C, DEVICE, in_updates=in_updates)
    counts = Counter(waits) - Counter(wait for update in in_updates for wait in update)
    assert counts.pop(ACTIONS) == UPDATES * NUM_STEPS * NUM_PARTS
    assert 1 <= counts.pop(AT_TIME_LIMITS) <= UPDATES
    assert set(counts) == {"copy from the host in a test"}, counts  # Stable-Baselines3 moves its policy there


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_training_there_is_training_here(kind):
    here, there = (trained(kind, device, callback=NoiseScaleCallback(measure_every=2)) for device in ("cpu", DEVICE))
    for name, parameter in there.policy.named_parameters():
        assert isinstance(parameter.data, Simulated)
        assert_equal_to_rounding(parameter.data.on_host, here.policy.get_parameter(name).data, updates=UPDATES)
    if kind is A2C:
        assert there.update_moments is None  # the last update is not measured


def test_distributions_check_their_arguments_for_everybody_else():
    trained(PPO, "cpu")
    with pytest.raises(ValueError, match="logits"):
        Categorical(logits=torch.tensor([float("nan"), 0.0]))


# --- estimators


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["layer_products", "micro_batches"])
def test_products_are_the_same(device, method):
    inputs = torch.randn(24, 1, 7, 7, generator=torch.Generator().manual_seed(1))

    def grams(device):
        model, x = small_network().to(device), inputs.to(device)

        def terms(index):
            outputs = model(x[index])
            return {"one": outputs.square().sum(1), "two": outputs[:, 0]}

        groups, both = torch.arange(24).view(4, 6).to(device), {"both": {"one": 1.0, "two": 0.5}}
        return group_grams(model, terms, groups, combinations=both, method=method)

    expected, found = grams("cpu"), grams(device)
    for layer, products in expected.layers.items():
        assert found.layers[layer] == rounded(products, factor=2, scale=abs(products).max())


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_and_its_moments_are_the_same(device):
    inputs = torch.randn(24, 1, 7, 7, generator=torch.Generator().manual_seed(1))

    def backward(device):
        model, x = small_network().to(device), inputs.to(device)
        groups = torch.arange(24).view(4, 6).to(device)
        terms = lambda index: {"loss": model(x[index]).square().sum(1)}  # noqa: E731
        grams = group_backward(model, terms, groups).grams
        return [parameter.grad.cpu() for parameter in model.parameters()], grams.moments(TRAINED)

    (expected, expected_moments), (found, moments) = backward("cpu"), backward(device)
    for one, other in zip(found, expected, strict=True):
        assert_equal_to_rounding(getattr(one, "on_host", one), other)
    assert_same_moments(moments, expected_moments)


def test_a_supervised_update_waits_once():
    data, task = random_data("digits"), TASKS["digits"]
    here, there = (Learner(task, small("digits"), data, torch.device(device), ALONE, [0]) for device in ("cpu", DEVICE))
    for number in range(3):
        with waits_for_the_device() as waits:
            learnt = there.update()
        own = waits[-2:] if number == 0 else waits  # the first also finds out how the model treats examples
        assert own == ["copy to the host in learning.py _fetched", MOMENTS]
        assert learnt.loss == rounded(here.update().loss, updates=3)
    with waits_for_the_device() as waits:
        mean, error = there.evaluate(data.test)
    assert set(waits) == {"copy to the host in learning.py evaluate"}
    assert (mean, error) == rounded(here.evaluate(data.test), updates=3)
