"""Models of Stable-Baselines3 are measured correctly or refused early, and measuring changes nothing."""

import copy
import random

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from support.environments import RandomWalks, TestVecEnv
from torch.distributions import Distribution
from torch.nn import functional

from rlgns.agents import A2C, PPO, NoiseScaleCallback, RolloutMeasurer

STOCK = {
    "a2c": (stable_baselines3.A2C, {"n_steps": 6, "normalize_advantage": True, "ent_coef": 0.1}),
    "ppo": (stable_baselines3.PPO, {"n_steps": 6, "batch_size": 24, "n_epochs": 2, "clip_range_vf": 0.2}),
}
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "discrete from 2": spaces.Discrete(3, start=2),
    "multi discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "box of float64": spaces.Box(-1, 1, (2,), np.float64),
}
OBSERVATIONS = {
    "box of float64": spaces.Box(-1, 1, (2, 2), np.float64),
    "discrete": spaces.Discrete(5),
    "multi discrete": spaces.MultiDiscrete([2, 3]),
    "multi binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "dict": spaces.Dict({"a": VECTOR, "b": spaces.Discrete(4), "c": spaces.Box(0, 255, (1, 36, 36), np.uint8)}),
}
EVERYTHING = (
    [("a", VECTOR, action, {}) for action in ACTIONS.values()]
    + [("o", observation, spaces.Discrete(3), {}) for observation in OBSERVATIONS.values()]
    + [("s", VECTOR, ACTIONS["box"], {"use_sde": True})]
)
NAMES = [f"actions {name}" for name in ACTIONS] + [f"observations {name}" for name in OBSERVATIONS] + ["sde"]


class AnySpaces(TestVecEnv):
    """Random observations that do not depend on the actions, and rewards that depend on the observations."""

    def __init__(self, num_envs: int, observations: spaces.Space, actions: spaces.Space) -> None:
        super().__init__(num_envs, observations, actions)
        observations.seed(0)
        self.rng = np.random.default_rng(0)

    def reset(self):
        drawn = [self.observation_space.sample() for _ in range(self.num_envs)]
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.stack([sample[key] for sample in drawn]) for key in self.observation_space}
        return np.stack(drawn)

    def step_wait(self):
        rewards = self.rng.normal(size=self.num_envs).astype(np.float32)
        return self.reset(), rewards, self.rng.random(self.num_envs) < 0.1, [{} for _ in range(self.num_envs)]


def policy_of(observations: spaces.Space) -> str:
    if isinstance(observations, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(observations.shape or ()) == 3 else "MlpPolicy"


def make(algorithm: str, environments, policy="MlpPolicy", **options):
    kind, defaults = STOCK[algorithm]
    return kind(policy, environments, seed=1, device="cpu", **defaults, **options)


class AtRolloutEnd(BaseCallback):
    """Calls `check(model)` where measuring takes place, and the same after it."""

    def __init__(self, check):
        super().__init__()
        self.check = check
        self.num_calls = 0

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.check(self.model)
        self.num_calls += 1


def plain_moments(model, num_groups):
    """{loss: (|G|², tr Σ)} by plain autograd on Stable-Baselines3's own samples, its losses written out."""
    buffer, state = copy.deepcopy(model.rollout_buffer), np.random.get_state()  # noqa: NPY002
    next(buffer.get())  # flattened, grouped by environment
    np.random.set_state(state)  # noqa: NPY002
    n = len(buffer.advantages)
    advantages = torch.tensor(buffer.advantages).flatten()
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    model.policy.set_training_mode(True)
    gradients = {"policy": [], "value": [], "total": []}
    for group in np.split(np.arange(n), num_groups):
        samples = buffer._get_samples(group)
        actions = samples.actions
        if isinstance(model.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = model.policy.evaluate_actions(samples.observations, actions)
        ratio = torch.exp(log_prob - samples.old_log_prob) if isinstance(model, stable_baselines3.PPO) else log_prob
        policy_loss = -(advantages[group] * ratio).mean()
        value_loss = functional.mse_loss(samples.returns, values.flatten())
        entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
        total = policy_loss + model.ent_coef * entropy_loss + model.vf_coef * value_loss
        for name, loss in (("policy", policy_loss), ("value", value_loss), ("total", total)):
            grads = torch.autograd.grad(loss, list(model.policy.parameters()), retain_graph=True, allow_unused=True)
            gradients[name].append(torch.cat([g.to_dense().flatten() for g in grads if g is not None]).double())
    moments = {}
    for name, rows in gradients.items():
        G = torch.stack(rows).numpy()
        products = G @ G.T
        sq_norm = (products.sum() - products.trace()) / (num_groups * (num_groups - 1))
        moments[name] = sq_norm, n / num_groups * (products.trace() / num_groups - sq_norm)
    return moments


@pytest.mark.parametrize("algorithm", STOCK)
@pytest.mark.parametrize(("observations", "actions", "options"), [case[1:] for case in EVERYTHING], ids=NAMES)
def test_every_space_that_stable_baselines3_takes_is_measured_as_by_plain_autograd(
    algorithm, observations, actions, options
):
    noise = NoiseScaleCallback(1, RolloutMeasurer(num_groups=4), design_effect_every=0)

    def check(model):
        mode = model.policy.training
        for loss, expected in plain_moments(model, 4).items():
            measured = noise.latest[loss]
            # float32 gradients: rounding is about 1e-6 of their squared norm
            np.testing.assert_allclose(
                (measured.sq_norm, measured.trace_covariance / 24),
                (expected[0], expected[1] / 24),
                rtol=2e-4,
                atol=1e-5 * measured.small_sq_norm,
            )
        model.policy.set_training_mode(mode)

    callback = AtRolloutEnd(check)
    model = make(algorithm, AnySpaces(4, observations, actions), policy_of(observations), **options)
    model.learn(2 * 24, callback=[noise, callback])
    assert callback.num_calls == 2


class SparseExtractor(FlattenExtractor):
    """Embeds a discrete observation with a table whose gradient is sparse."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space)
        self.table = torch.nn.Embedding(5, 6, sparse=True)
        self._features_dim = 6

    def forward(self, observations):
        return self.table(super().forward(observations).argmax(1))


@pytest.mark.parametrize("algorithm", STOCK)
def test_a_policy_with_sparse_gradients_is_measured_as_by_plain_autograd(algorithm, monkeypatch):
    """Rollouts only: Stable-Baselines3 always clips, which is not possible with sparse gradients."""
    options = {"features_extractor_class": SparseExtractor, "optimizer_class": torch.optim.SGD}
    environments = AnySpaces(4, spaces.Discrete(5), spaces.Discrete(3))
    model = make(
        algorithm, environments, policy_kwargs=options, **({"use_rms_prop": False} if algorithm == "a2c" else {})
    )
    monkeypatch.setattr(model, "train", lambda: None)
    noise = NoiseScaleCallback(1, RolloutMeasurer(num_groups=4, by_layer=True), design_effect_every=1)

    def check(model):
        for loss, expected in plain_moments(model, 4).items():
            measured = noise.latest[loss]
            assert measured.sq_norm == pytest.approx(expected[0], rel=2e-4, abs=1e-5 * measured.small_sq_norm)
        assert noise.latest["value/layer/features_extractor.table"].large_sq_norm > 0

    callback = AtRolloutEnd(check)
    model.learn(2 * 24, callback=[noise, callback])
    assert callback.num_calls == 2


# Measuring changes nothing


class Notes(FlattenExtractor):
    """An extractor that counts its calls, keeps its last features, and has a part that never trains."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space)
        self.num_calls = 0
        self.register_buffer("mean", torch.zeros(self.features_dim))
        self.dropout = torch.nn.Dropout(0.5)
        self.linear = torch.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations):
        self.num_calls += 1
        features = self.linear(self.dropout(super().forward(observations)))
        if self.num_calls == 3:
            self.first_seen = self.num_calls
        self.last_features = features.detach()
        with torch.no_grad():
            self.mean += features.mean(0)
        return features


def everything(root):
    """Everything that can be reached from an object, by path: plain values, contents of arrays, identities."""
    state, seen = {}, set()

    def visit(path, value):
        if isinstance(value, torch.Tensor):
            state[path] = (id(value), value.requires_grad, value.grad_fn is not None, value.detach().numpy().copy())
            if value.is_leaf and value.grad is not None:
                visit(f"{path}.grad", value.grad)
        elif isinstance(value, np.ndarray):
            state[path] = value.copy()
        elif isinstance(value, bool | int | float | str | bytes | None | np.generic | torch.dtype | torch.device):
            state[path] = value
        elif id(value) not in seen:
            seen.add(id(value))
            state[path] = (id(value), type(value).__name__)
            if isinstance(value, dict):
                for key, item in value.items():
                    visit(f"{path}[{key if isinstance(key, str | int) else id(key)}]", item)
            elif isinstance(value, list | tuple | set | frozenset):
                for i, item in enumerate(value):
                    visit(f"{path}[{i}]", item)
            elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable_without_state(value):
                for name, item in vars(value).items():
                    visit(f"{path}.{name}", item)

    def callable_without_state(value):
        return callable(value) and not isinstance(value, torch.nn.Module) and not vars(value)

    visit("model", root)
    state["generators"] = (random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().copy())  # noqa: NPY002
    state["process"] = (
        Distribution._validate_args,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
    )
    return state


@pytest.mark.parametrize("algorithm", STOCK)
@pytest.mark.parametrize("actions", ["discrete", "multi binary", "multi discrete", "box", "sde"])
@pytest.mark.filterwarnings("ignore:.*use_sde")
def test_nothing_that_can_be_reached_differs_after_a_measurement(algorithm, actions):
    is_sde = actions == "sde"
    environments = AnySpaces(4, VECTOR, ACTIONS["box" if is_sde else actions])
    model = make(
        algorithm,
        environments,
        policy_kwargs={"features_extractor_class": Notes},
        **({"use_sde": True} if is_sde else {}),
    )
    measurer = RolloutMeasurer(num_groups=4, by_layer=True, preconditioned=True)

    def check(model):
        model.policy.features_extractor.linear.train()  # one module in another mode than the rest
        assert model.policy.action_dist.distribution is not None
        before = everything(model)
        measurer.measure(model, other_unit=True)
        after = everything(model)
        assert after.keys() == before.keys()
        for path, value in before.items():
            np.testing.assert_equal(after[path], value, err_msg=path)

    callback = AtRolloutEnd(check)
    model.learn(2 * 24, callback=callback)
    assert callback.num_calls == 2


@pytest.mark.parametrize(("kind", "options"), [(A2C, {"n_steps": 6}), (PPO, STOCK["ppo"][1]), *STOCK.values()])
def test_a_callback_after_ours_reads_the_distribution_that_was_acted_by(kind, options):
    read = []

    class Reads(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            read.append(self.model.policy.action_dist.distribution.logits)

        def _on_rollout_start(self):
            if self.model._n_updates:  # the distribution that training evaluated last
                distribution = self.model.policy.action_dist.distribution
                read.append(distribution.entropy())

    model = kind("MlpPolicy", RandomWalks(4, seed=0), seed=1, device="cpu", **options)
    model.learn(3 * 24, callback=[NoiseScaleCallback(1), Reads()])
    measured, read = read, []
    model = kind("MlpPolicy", RandomWalks(4, seed=0), seed=1, device="cpu", **options)
    model.learn(3 * 24, callback=Reads())
    assert len(measured) == 5
    assert all(torch.equal(a, b) for a, b in zip(measured, read, strict=True))
    if kind in (A2C, PPO):
        assert not any(tensor.requires_grad for tensor in measured), "no graph is kept until the next call"


# What cannot be measured


class TRPO(OnPolicyAlgorithm):
    """As in sb3-contrib: another loss on the same rollouts."""

    def __init__(self, environments, policy=ActorCriticPolicy, buffer=RolloutBuffer):
        common = {
            "learning_rate": 1e-3,
            "n_steps": 4,
            "gamma": 0.99,
            "gae_lambda": 1.0,
            "ent_coef": 0.0,
            "vf_coef": 0.5,
        }
        super().__init__(
            policy, environments, **common, max_grad_norm=0.5, use_sde=False, sde_sample_freq=-1, device="cpu",
            rollout_buffer_class=buffer,
        )  # fmt: skip

    def train(self):
        raise AssertionError("nothing may be trained")


class RecurrentPPO(TRPO):
    """As in sb3-contrib."""


class MaskablePPO(TRPO):
    """As in sb3-contrib."""


class RecurrentPolicy(ActorCriticPolicy):
    """A policy whose `evaluate_actions` needs more than observations and actions."""

    def evaluate_actions(self, obs, actions, lstm_states, episode_starts):
        raise AssertionError("nothing may be evaluated")


class MaskedBuffer(RolloutBuffer):
    """A rollout buffer that stores action masks as well."""

    def __init__(self, *arguments, **options):
        self.action_masks = np.ones(1)
        super().__init__(*arguments, **options)


class WithMasks(stable_baselines3.A2C):
    """A subclass of A2C whose buffer has action masks."""


REFUSED = {
    "TRPO": TRPO,
    "RecurrentPPO": RecurrentPPO,
    "MaskablePPO": MaskablePPO,
    "A2C with RecurrentPolicy": lambda environments: stable_baselines3.A2C(RecurrentPolicy, environments, device="cpu"),
    "WithMasks with MaskedBuffer": lambda environments: WithMasks(
        "MlpPolicy", environments, rollout_buffer_class=MaskedBuffer, device="cpu"
    ),
    "DQN": lambda environments: stable_baselines3.DQN("MlpPolicy", environments, buffer_size=100, device="cpu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_algorithms_with_another_loss_are_refused_before_the_first_step_and_the_supported_ones_are_named(name):
    environments = RandomWalks(4, seed=0)
    model = REFUSED[name](environments)
    with pytest.raises(TypeError, match=rf"^{name} cannot be measured; the losses of A2C and PPO are known") as error:
        model.learn(100, callback=NoiseScaleCallback())
    assert environments.num_steps == 0
    assert "\n" not in str(error.value)
    assert "stable_baselines3 or rlgns.agents" in str(error.value)


class Normalised(FlattenExtractor):
    """A features extractor that couples the transitions of a batch."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space)
        self.norm = torch.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations):
        return self.norm(super().forward(observations))


@pytest.mark.parametrize(
    ("options", "measurer", "message"),
    [
        (
            {"features_extractor_class": Normalised},
            RolloutMeasurer(),
            "features_extractor.norm .* normalises over the b",
        ),
        (
            {"optimizer_class": torch.optim.SGD},
            RolloutMeasurer(preconditioned=True),
            "preconditioner of SGD is not known; use RMSprop, Adam or AdamW",
        ),
        (
            {"optimizer_kwargs": {"amsgrad": True}},
            RolloutMeasurer(preconditioned=True),
            "centred RMSprop and AMSGrad are not supported",
        ),
    ],
)
def test_a_model_that_cannot_be_measured_as_asked_is_refused_before_the_first_step(options, measurer, message):
    environments = RandomWalks(4, seed=0)
    model = make("ppo", environments, policy_kwargs=options)
    modes = [module.training for module in model.policy.modules()]
    with pytest.raises(ValueError, match=message):
        model.learn(100, callback=NoiseScaleCallback(measurer=measurer))
    assert environments.num_steps == 0
    assert [module.training for module in model.policy.modules()] == modes
