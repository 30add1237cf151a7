"""sb3-contrib's RecurrentPPO, MaskablePPO and TRPO are measured exactly, and trained as without."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from torch.nn import functional

from rlgns.agents import NoiseScaleCallback
from rlgns.agents.cadence import MEASUREMENT_COST, RECURRENT_MEASUREMENT_COST
from rlgns.agents.measuring import RolloutMeasurer
from rlgns.noise.moments import moments_from_groups

pytestmark = pytest.mark.numerical

NUM_ENVS, NUM_STEPS = 8, 24


class ShortCorridor(gymnasium.Env):
    """A walk with action masks and episodes of a few steps, in which a position is seen once and has to be kept."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.place = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(-2, 3)), 0
        return np.array([self.place / 4, 0, 1], np.float32), {}

    def step(self, action):
        self.place, self.time = self.place + int(action) - 1, self.time + 1
        shown = np.array([0, self.np_random.normal() / 4, 0], np.float32).clip(-1, 1)
        return shown, float(-abs(self.place)), abs(self.place) > 3, self.time >= 9, {}

    def action_masks(self):
        return np.array([self.place > -3, True, self.place < 3])


class Kept(NoiseScaleCallback):
    """Keeps the group gradients of the rollout that it measures, computed by hand."""

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        if not hasattr(self, "gradients"):
            self.gradients = by_hand(self.model)


def environment_ppo(kind, seed=0, **options):
    environments = make_vec_env(ShortCorridor, NUM_ENVS, seed=seed)
    policy = "MlpLstmPolicy" if kind is RecurrentPPO else "MlpPolicy"
    return kind(policy, environments, n_steps=NUM_STEPS, batch_size=48, seed=seed, device="cpu", **options)


def by_hand(model):
    """Gradients [K, parameters] of policy and total loss, one backward for each group of two environments."""
    buffer, losses = model.rollout_buffer, {"policy": [], "total": []}
    flat = {name: torch.as_tensor(buffer.swap_and_flatten(getattr(buffer, name))).flatten() for name in
            ("advantages", "returns", "log_probs")}  # fmt: skip
    advantages = (flat["advantages"] - flat["advantages"].mean()) / (flat["advantages"].std() + 1e-8)
    observations = torch.as_tensor(buffer.swap_and_flatten(buffer.observations))
    actions = torch.as_tensor(buffer.swap_and_flatten(buffer.actions)).long().flatten()
    for first in range(0, NUM_ENVS, 2):
        values, log_probs, entropies, index = [], [], [], []
        for environment in (first, first + 1):
            here = slice(environment * NUM_STEPS, (environment + 1) * NUM_STEPS)
            more = {}
            if isinstance(model, MaskablePPO):
                more = {"action_masks": buffer.swap_and_flatten(buffer.action_masks)[here]}
            if isinstance(model, RecurrentPPO):
                # step by step from the hidden state of the first step, which is that of the previous rollout's end
                names = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
                states = [torch.as_tensor(getattr(buffer, name)[0][:, [environment]]) for name in names]
                pi, vf, latent = tuple(states[:2]), tuple(states[2:]), []
                for time in range(NUM_STEPS):
                    kept = 1 - float(buffer.episode_starts[time, environment])
                    seen = observations[here][time][None]
                    out_pi, pi = model.policy.lstm_actor(seen[None], (kept * pi[0], kept * pi[1]))
                    out_vf, vf = model.policy.lstm_critic(seen[None], (kept * vf[0], kept * vf[1]))
                    latent.append((out_pi[0], out_vf[0]))
                latent_pi, latent_vf = (torch.cat(part) for part in zip(*latent, strict=True))
                value = model.policy.value_net(model.policy.mlp_extractor.forward_critic(latent_vf))
                distribution = model.policy._get_action_dist_from_latent(
                    model.policy.mlp_extractor.forward_actor(latent_pi)
                )
                log_prob, entropy = distribution.log_prob(actions[here]), distribution.entropy()
            else:
                value, log_prob, entropy = model.policy.evaluate_actions(observations[here], actions[here], **more)
            values.append(value.flatten())
            log_probs.append(log_prob)
            entropies.append(entropy)
            index.append(torch.arange(NUM_ENVS * NUM_STEPS)[here])
        chosen = torch.cat(index)
        ratio = torch.exp(torch.cat(log_probs) - flat["log_probs"][chosen])
        policy = -(advantages[chosen] * ratio).mean()
        value_loss = functional.mse_loss(torch.cat(values), flat["returns"][chosen])
        total = policy + model.vf_coef * value_loss - model.ent_coef * torch.cat(entropies).mean()
        for name, loss in (("policy", policy), ("total", total)):
            gradients = torch.autograd.grad(loss, list(model.policy.parameters()), allow_unused=True, retain_graph=True)
            rows = [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(gradients, model.policy.parameters(), strict=True)
            ]
            losses[name].append(torch.cat([row.flatten() for row in rows]).double())
    return {name: torch.stack(rows).numpy() for name, rows in losses.items()}


@pytest.mark.parametrize("kind", [RecurrentPPO, MaskablePPO, TRPO])
def test_moments_are_those_of_gradients_by_hand(kind):
    options = {} if kind is TRPO else {"ent_coef": 0.02, "n_epochs": 2}
    model = environment_ppo(kind, **options)
    model.learn(NUM_ENVS * NUM_STEPS)  # the second rollout starts from hidden states, in the middle of episodes
    noise = Kept(measure_every=1, num_groups=4)
    model.learn(NUM_ENVS * NUM_STEPS, callback=noise, reset_num_timesteps=False)
    (measured,) = noise.history.measurements
    for loss, gradients in noise.gradients.items():
        exact = moments_from_groups(gradients, NUM_STEPS * NUM_ENVS // 4)
        ours = measured[loss]
        # float32 gradients: rounding of the larger of the two squared norms
        close = {"rel": 1e-4, "abs": 1e-5 * exact.small_sq_norm}
        assert ours.sq_norm == pytest.approx(exact.sq_norm, **close)
        assert ours.trace_covariance == pytest.approx(exact.trace_covariance, rel=1e-3)
        assert (ours.small_batch_size, ours.large_batch_size) == (NUM_STEPS * 2, NUM_STEPS * NUM_ENVS)
    if kind is TRPO:  # its value function is trained apart
        assert measured["total"].sq_norm == measured["policy"].sq_norm


@pytest.mark.parametrize("kind", [RecurrentPPO, MaskablePPO, TRPO])
def test_training_is_bitwise_as_without(kind):
    trained = []
    for callback in (None, NoiseScaleCallback(measure_every=1)):
        model = environment_ppo(kind)
        model.learn(3 * NUM_ENVS * NUM_STEPS, callback=callback)
        trained.append([p.detach().clone() for p in model.policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))
    assert len(callback.history.measurements) == 3
    assert callback.summary()["noise/num_measurements"] == 3
    assert "Advice takes 20 measurements" in callback.recommendation()
    design_effects = [m for m in callback.history.measurements if "policy/by_transition" in m]
    assert len(design_effects) == (0 if kind is RecurrentPPO else 1)  # every fourth


def test_by_default_a_recurrent_policy_is_measured_half_as_often():
    for kind, cost in ((RecurrentPPO, RECURRENT_MEASUREMENT_COST), (MaskablePPO, MEASUREMENT_COST)):
        noise = NoiseScaleCallback()
        environment_ppo(kind, n_epochs=4).learn(NUM_ENVS * NUM_STEPS, callback=noise)
        assert noise.cadence.updates_per_measurement == math.ceil(cost / (0.02 * 5))


def test_transitions_of_a_recurrent_policy_are_no_units():
    model = environment_ppo(RecurrentPPO)
    with pytest.raises(ValueError, match='depend on one another; use unit="environment"'):
        model.learn(1, callback=NoiseScaleCallback(unit="transition"))


def test_preconditioned_and_layers_are_measured(kind=RecurrentPPO):
    model = environment_ppo(kind)
    noise = NoiseScaleCallback(measurer=RolloutMeasurer(by_layer=True, preconditioned=True), measure_every=1)
    model.learn(2 * NUM_ENVS * NUM_STEPS, callback=noise)
    assert "policy/layer/lstm_actor" in noise.history.measurements[0]
    assert "policy/preconditioned" in noise.history.measurements[1]


def test_other_algorithms_are_refused_by_name():
    model = ARS("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(TypeError, match=r"ARS cannot be measured; .*RecurrentPPO, MaskablePPO and TRPO"):
        model.learn(1, callback=NoiseScaleCallback())
