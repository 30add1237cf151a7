"""Gradients, measurements and training of two real processes against one that holds all groups and environments.

Run as a script, this file is one rank: `test_ranks_of_gradients.py JOB FOLDER` joins the other, does the job and saves
what it returns.
"""

import subprocess
import sys
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from support import tolerances
from support.environments import TestVecEnv
from support.oracles import measured_values
from support.tolerances import MIXED_SIGNS, assert_same_training, rounded
from test_gradients import (
    OPTIMIZERS,
    B,
    PerStep,
    Problem,
    Shared,
    Twice,
    channels_last,
    cnn,
    mlp,
    trained,
    with_layer_norm,
)
from test_parallel import TIMEOUT, end, environment, free_port
from torch import Tensor, nn

from rlgns import GradientMoments
from rlgns.agents import A2C, PPO, DeviceRolloutBuffer, RolloutMeasurer
from rlgns.gradients.backward import group_backward
from rlgns.gradients.groups import group_grams
from rlgns.noise.history import TRAINED
from rlgns.runs.ranks import ALONE, Ranks

SIZE = 2

# --- gradients, as every rank finds them ------------------------------------------------------------------------------


def wide() -> Shared:
    return Shared(nn.Sequential(nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 300), nn.Tanh()), 300)


MODELS = {
    "mlp without gradients, wider than the batch of all ranks": wide,
    "mlp by explicit gradients, the batch being large against it": mlp,
    "mlp over time": PerStep,
    "cnn": cnn,
    "cnn in channels_last": channels_last,
    "layer norm": with_layer_norm,
    "layer called twice": lambda: Twice(nn.Linear(5, 5), 5),
}

MEASUREMENTS = {
    **{name: (name, {}) for name in MODELS},
    **{
        f"{name} by micro-batches": (name, {"method": "micro_batches"}) for name in MODELS if name[:3] in {"mlp", "cnn"}
    },
    "mlp under Adam": ("mlp by explicit gradients, the batch being large against it", {"optimizer": "Adam"}),
    "mlp under RMSprop": ("mlp by explicit gradients, the batch being large against it", {"optimizer": "RMSprop"}),
    "cnn under Adam": ("cnn", {"optimizer": "Adam"}),
}
"""Model and options of group_grams."""

NUMBERS_OF_GROUPS = [6, 2]
"""Of all ranks; the latter leaves one to each."""


def make_problem(name: str) -> Problem:
    torch.manual_seed(1)
    return Problem(MODELS[name](), images="cnn" in name)


def own_groups(ranks: Ranks, num_groups: int) -> np.ndarray:
    groups = np.random.default_rng(num_groups).permutation(B).reshape(num_groups, -1)
    return np.split(groups, ranks.size)[ranks.rank]


def loss_of(problem: Problem, index: Tensor) -> Tensor:
    by_loss = problem.terms(index)
    return by_loss["policy"] + 0.25 * by_loss["value"] - 0.01 * by_loss["both"]


def measured(name: str, num_groups: int, ranks: Ranks) -> dict[str, Any]:
    model, options = MEASUREMENTS[name]
    problem = make_problem(model)
    if "optimizer" in options:
        options = {"optimizer": OPTIMIZERS[options["optimizer"]](problem.model.parameters())}
        trained(problem, options["optimizer"])
    grams = group_grams(
        problem.model,
        problem.terms,
        own_groups(ranks, num_groups),
        combinations={"total": {"policy": 1.0, "value": 0.25}},
        ranks=ranks,
        **options,
    )
    return {
        "layers": {layer: torch.from_numpy(products) for layer, products in grams.layers.items()},
        "moments": {loss: measured_values(grams.moments(loss)) for loss in grams.losses},
    }


def differentiated(name: str, num_groups: int, ranks: Ranks, measure: bool = True) -> dict[str, Any]:
    problem = make_problem(name)
    groups = own_groups(ranks, num_groups)
    grams = group_backward(
        problem.model, lambda i: {"loss": loss_of(problem, i)}, groups, measure=measure, ranks=ranks
    ).grams
    return {
        "gradients": [p.grad for p in problem.model.parameters()],
        "moments": grams and measured_values(grams.moments(TRAINED)),
    }


def all_gradients(ranks: Ranks) -> dict[str, Any]:
    return {
        "measured": {name: {K: measured(name, K, ranks) for K in NUMBERS_OF_GROUPS} for name in MEASUREMENTS},
        "differentiated": {name: {K: differentiated(name, K, ranks) for K in NUMBERS_OF_GROUPS} for name in MODELS},
        "unmeasured": {name: differentiated(name, 6, ranks, measure=False) for name in MODELS},
    }


# --- training, as every rank does it ----------------------------------------------------------------------------------


class NumberedWalks(TestVecEnv):
    """Random walks in the plane, pushed along the first axis by the action; each depends on its own number only.

    An episode ends far out, and after 23 steps by a time limit.

    numbers  of these environments among those of all ranks
    """

    def __init__(self, numbers: range) -> None:
        super().__init__(len(numbers), spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(3))
        self.generators = [np.random.default_rng(number) for number in numbers]
        self.positions = np.zeros((len(numbers), 2), np.float32)
        self.lengths = np.zeros(len(numbers), int)

    def normal(self, i: int) -> np.ndarray:
        return self.generators[i].normal(size=2).astype(np.float32)

    def reset(self) -> np.ndarray:
        self.positions = np.stack([self.normal(i) for i in range(self.num_envs)])
        self.lengths[:] = 0
        return self.positions.copy()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        self.lengths += 1
        for i in range(self.num_envs):
            position = self.positions[i]
            position += 0.3 * self.normal(i)
            position[0] += 0.3 * (self.actions[i] - 1)
            rewards[i] = 1 - abs(position[0])
            far, late = bool((position**2).sum() > 6), self.lengths[i] == 23
            if far or late:
                dones[i] = True
                infos[i] = {"terminal_observation": position.copy(), "TimeLimit.truncated": not far}
                self.positions[i], self.lengths[i] = self.normal(i), 0
        return self.positions.copy(), rewards, dones, infos


class Recorder(BaseCallback):
    """Of every update: the parameters after it, optimiser steps so far, moments, and what was logged."""

    def __init__(self, measurer: RolloutMeasurer) -> None:
        super().__init__()
        self.measurer = measurer
        self.updates: list[dict[str, Any]] = []
        self.of_rollouts: list[dict[str, dict[str, float]]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        moments = self.measurer.measure(self.model)
        self.of_rollouts.append({loss: measured_values(moments[loss]) for loss in ("policy", "value", "total")})

    def _on_rollout_start(self) -> None:
        moments = getattr(self.model, "update_moments", None)
        self.updates.append({
            "parameters": [p.detach().clone() for p in self.model.policy.parameters()],
            "num_optimizer_steps": self.model.num_optimizer_steps,
            "moments": moments and measured_values(moments),
            "logged": {k: float(v) for k, v in self.logger.name_to_value.items() if k.startswith("train/")},
        })  # fmt: skip

    def _on_training_end(self) -> None:
        self._on_rollout_start()


NUM_ENVS, NUM_UPDATES = 8, 6
SMALL_PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "learning_rate": 1e-3}

TRAININGS = {
    "A2C": (A2C, {}),
    "A2C with normalised advantages": (A2C, {"normalize_advantage": True, "ent_coef": 0.02, "n_steps": 16}),
    "PPO": (PPO, SMALL_PPO),
    "PPO with clipped values and an entropy bonus": (PPO, {**SMALL_PPO, "clip_range_vf": 0.2, "ent_coef": 0.02}),
    "PPO without normalised advantages": (PPO, {**SMALL_PPO, "normalize_advantage": False}),
    "PPO with a target KL": (PPO, {**SMALL_PPO, "target_kl": 0.003, "learning_rate": 3e-3, "n_epochs": 4}),
}


def train(name: str, ranks: Ranks) -> dict[str, Any]:
    kind, options = TRAININGS[name]
    n = NUM_ENVS // ranks.size
    if kind is PPO:
        options = {**options, "batch_size": options["batch_size"] // ranks.size}
    environments = NumberedWalks(range(ranks.rank * n, (ranks.rank + 1) * n))
    model = kind("MlpPolicy", environments, seed=3, device="cpu", rollout_buffer_class=DeviceRolloutBuffer, **options)
    model.ranks = ranks
    if kind is A2C:
        model.num_groups, model.measure_updates = n, True
    recorder = Recorder(RolloutMeasurer(num_groups=NUM_ENVS))
    model.learn(NUM_UPDATES * model.n_steps * n, callback=recorder)
    return {"updates": recorder.updates, "of_rollouts": recorder.of_rollouts, "num_updates": model.num_updates}


def all_trainings(ranks: Ranks) -> dict[str, Any]:
    return {name: train(name, ranks) for name in TRAININGS}


# --- ranks as processes -----------------------------------------------------------------------------------------------


def what_ranks_return(job: str, folder: Path) -> list[dict[str, Any]]:
    shared = {"WORLD_SIZE": SIZE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, __file__, job, str(folder)]
    processes = [
        subprocess.Popen(command, env=environment(RANK=r, LOCAL_RANK=r, **shared), stderr=subprocess.PIPE, text=True)
        for r in range(SIZE)
    ]
    assert [end(process) for process in processes] == [(0, "")] * SIZE
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory) -> list[dict[str, Any]]:
    """What every rank returned from `all_gradients`."""
    return what_ranks_return("all_gradients", tmp_path_factory.mktemp("gradients"))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> list[dict[str, Any]]:
    """What every rank returned from `all_trainings`."""
    return what_ranks_return("all_trainings", tmp_path_factory.mktemp("trainings"))


def assert_same_moments(found, expected, dtype=torch.float32, updates=0):
    one, other = (GradientMoments(**fields) for fields in (found, expected))
    tolerances.assert_same_moments(one, other, dtype, updates, factor=MIXED_SIGNS)


# --- gradients and their products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_groups", NUMBERS_OF_GROUPS)
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_each_rank_finds_the_products_of_the_groups_of_all(gradients, name, num_groups):
    alone = measured(name, num_groups, ALONE)
    for rank in gradients:
        found = rank["measured"][name][num_groups]
        assert found["layers"].keys() == alone["layers"].keys()
        for layer, products in alone["layers"].items():
            assert products.shape[1] == num_groups
            torch.testing.assert_close(found["layers"][layer], products, rtol=1e-9, atol=1e-12)
        for loss, moments in alone["moments"].items():
            assert_same_moments(found["moments"][loss], moments, torch.float64)


def test_both_ways_of_layer_products_are_met():
    # without gradients where the batch of all ranks is small against the layer, n(in + out) ≤ in·out
    ways = {
        name: {B * (m.in_features + m.out_features) <= m.in_features * m.out_features for m in linear_layers(name)}
        for name in MODELS
        if name.startswith("mlp")
    }
    assert ways["mlp without gradients, wider than the batch of all ranks"] == {True, False}
    assert ways["mlp by explicit gradients, the batch being large against it"] == {False}


def linear_layers(name: str) -> list[nn.Linear]:
    return [module for module in make_problem(name).model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("num_groups", NUMBERS_OF_GROUPS)
@pytest.mark.parametrize("name", MODELS)
def test_the_backward_of_training_finds_the_moments_of_the_groups_of_all_ranks(gradients, name, num_groups):
    alone = differentiated(name, num_groups, ALONE)
    for rank in gradients:
        assert_same_moments(rank["differentiated"][name][num_groups]["moments"], alone["moments"], torch.float64)


@pytest.mark.parametrize("num_groups", NUMBERS_OF_GROUPS)
@pytest.mark.parametrize("name", MODELS)
def test_the_mean_over_ranks_of_their_gradients_is_the_gradient_of_all_examples(gradients, name, num_groups):
    of_ranks = [rank["differentiated"][name][num_groups]["gradients"] for rank in gradients]
    for *own, expected in zip(*of_ranks, differentiated(name, num_groups, ALONE)["gradients"], strict=True):
        torch.testing.assert_close(sum(own) / SIZE, expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(*own)  # they are each rank's own


@pytest.mark.parametrize("name", MODELS)
def test_measured_or_not_each_ranks_gradients_are_bitwise_the_same(gradients, name):
    for rank in gradients:
        unmeasured = rank["unmeasured"][name]
        assert unmeasured["moments"] is None
        pairs = zip(unmeasured["gradients"], rank["differentiated"][name][6]["gradients"], strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("num_envs", "num_ranks"), [(1, 4), (1, 8), (4, 8), (16, 8), (6, 5), (2, 64)])
@pytest.mark.parametrize("unit", ["environment", "transition"])
def test_as_many_ranks_as_are_wanted_groups_or_more_leave_one_group_to_each(num_envs, num_ranks, unit):
    ranks, rng = Ranks(0, num_ranks), np.random.default_rng(0)
    for measurer in (RolloutMeasurer(unit=unit), RolloutMeasurer(num_groups=num_ranks, unit=unit)):
        measurer.check(num_envs, 16, ranks)
    groups = measurer._groups(unit, num_envs, 16, ranks, rng)
    assert sorted(groups.flatten().tolist()) == list(range(num_envs * 16))  # one group, of all that the rank has
    assert groups.shape[0] == 1


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=TRAININGS)
def training(request: pytest.FixtureRequest, trainings) -> tuple[dict, list[dict]]:
    """Training by one process with all environments, and by each of the ranks."""
    return train_alone(request.param), [rank[request.param] for rank in trainings]


@cache
def train_alone(name: str) -> dict[str, Any]:
    return train(name, ALONE)


def test_two_ranks_of_4_environments_train_as_one_of_8(training):
    alone, of_ranks = training
    assert len(alone["updates"]) == NUM_UPDATES + 1
    for rank in of_ranks:
        assert rank["num_updates"] == alone["num_updates"] == NUM_UPDATES
        for one, other in zip(rank["updates"], alone["updates"], strict=True):
            steps = other["num_optimizer_steps"]
            assert_same_training(one["parameters"], other["parameters"], alone["updates"][0]["parameters"], steps)
    start, finish = (alone["updates"][i]["parameters"] for i in (0, -1))
    assert max((a - b).abs().max() for a, b in zip(start, finish, strict=True)) > 1e-3  # it has moved


def test_parameters_are_bitwise_the_same_on_all_ranks_after_every_update(training):
    one, other = (rank["updates"] for rank in training[1])
    for first, second in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first["parameters"], second["parameters"], strict=True))


def test_all_ranks_log_what_one_process_with_all_environments_logs(training):
    alone, of_ranks = training
    for rank in of_ranks:
        for one, other in zip(rank["updates"], alone["updates"], strict=True):
            steps = other["num_optimizer_steps"]
            assert one["logged"] == rounded(other["logged"], updates=steps, factor=MIXED_SIGNS, scale=1.0)


def test_each_rank_measures_the_rollouts_of_all(training):
    alone, of_ranks = training
    for rank in of_ranks:
        assert len(rank["of_rollouts"]) == NUM_UPDATES
        for found, expected, update in zip(
            rank["of_rollouts"], alone["of_rollouts"], alone["updates"][:-1], strict=True
        ):
            for loss in ("policy", "value", "total"):
                assert_same_moments(found[loss], expected[loss], updates=update["num_optimizer_steps"])


@pytest.mark.parametrize("name", [name for name in TRAININGS if name.startswith("A2C")])
def test_the_moments_of_updates_are_those_of_one_process_with_all_groups(trainings, name):
    alone = train_alone(name)
    for rank in trainings:
        for one, other in zip(rank[name]["updates"][1:], alone["updates"][1:], strict=True):
            assert one["moments"]["num_groups"] == NUM_ENVS
            assert_same_moments(one["moments"], other["moments"], updates=other["num_optimizer_steps"])
            assert one["moments"]["large_sq_norm"] == rounded(one["logged"]["train/grad_norm"] ** 2, factor=2)


def test_target_kl_ends_an_update_at_the_same_minibatch_on_all_ranks_and_where_it_ends_for_one(trainings):
    name = "PPO with a target KL"
    steps = [[update["num_optimizer_steps"] for update in rank[name]["updates"]] for rank in trainings]
    assert steps[0] == steps[1] == [update["num_optimizer_steps"] for update in train_alone(name)["updates"]]
    minibatches = 4 * NUM_ENVS * 16 // 32
    assert 0 < steps[0][-1] < NUM_UPDATES * minibatches  # it did end some


if __name__ == "__main__":
    JOB, FOLDER = sys.argv[1:]
    RANKS = Ranks.from_environment()
    with RANKS.joined(torch.device("cpu"), timedelta(seconds=TIMEOUT)):
        torch.save(globals()[JOB](RANKS), Path(FOLDER) / f"{RANKS.rank}.pt")
