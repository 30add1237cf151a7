import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from support.tolerances import assert_equal_to_rounding
from torch.nn import functional

from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.losses import a2c_terms, normalised, ppo_terms, rollout_terms, weighted_terms

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE, CONTINUOUS = spaces.Discrete(4), spaces.Box(-1, 1, (2,), np.float32)
WEIGHTS = {"policy": 1.0, "value": 0.3, "entropy": 0.07}


def make_policy(action_space: spaces.Space, seed: int = 0) -> ActorCriticPolicy:
    torch.manual_seed(seed)
    return ActorCriticPolicy(VECTOR, action_space, lambda _: 1e-3)


def random_batch(policy: ActorCriticPolicy, size: int, seed: int = 0) -> RolloutBufferSamples:
    """Old log-probabilities and values differ from the policy's, so that some ratios and values are clipped."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    observations = draw(size, 3)
    with torch.no_grad():
        distribution = policy.get_distribution(observations)
        actions = distribution.sample()
        log_prob, values = distribution.log_prob(actions), policy.predict_values(observations).flatten()
    return RolloutBufferSamples(
        observations,
        actions.reshape(size, -1).float(),  # as SB3's buffer keeps them
        values + 0.3 * draw(size),
        log_prob + 0.3 * draw(size),
        draw(size),
        draw(size),
    )


@pytest.mark.parametrize("actions", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_mean_of_a2c_terms_is_stable_baselines3s_loss(actions, normalize):
    policy = make_policy(actions)
    batch = random_batch(policy, 64)
    advantages = normalised(batch.advantages) if normalize else batch.advantages
    loss = weighted_terms(a2c_terms(policy, batch, advantages), WEIGHTS).mean()
    loss.backward()
    gradients = [p.grad.clone() for p in policy.parameters()]

    # stable_baselines3.A2C.train, written out
    policy.optimizer.zero_grad()
    taken = batch.actions.long().flatten() if actions is DISCRETE else batch.actions
    values, log_prob, entropy = policy.evaluate_actions(batch.observations, taken)
    A = batch.advantages
    if normalize:
        A = (A - A.mean()) / (A.std() + 1e-8)
    policy_loss = -(A * log_prob).mean()
    value_loss = functional.mse_loss(batch.returns, values.flatten())
    expected = policy_loss + 0.07 * -torch.mean(entropy) + 0.3 * value_loss
    expected.backward()
    assert_equal_to_rounding(loss, expected)
    for gradient, parameter in zip(gradients, policy.parameters(), strict=True):
        assert_equal_to_rounding(gradient, parameter.grad)


@pytest.mark.parametrize("actions", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
def test_the_mean_of_ppo_terms_is_stable_baselines3s_loss(actions, clip_range_vf):
    policy = make_policy(actions)
    batch = random_batch(policy, 64)
    evaluation = ppo_terms(policy, batch, batch.advantages, 0.1, clip_range_vf)
    loss = weighted_terms(evaluation.terms, WEIGHTS).mean()
    loss.backward()
    gradients = [p.grad.clone() for p in policy.parameters()]

    # stable_baselines3.PPO.train, written out
    policy.optimizer.zero_grad()
    taken = batch.actions.long().flatten() if actions is DISCRETE else batch.actions
    values, log_prob, entropy = policy.evaluate_actions(batch.observations, taken)
    values = values.flatten()
    ratio = torch.exp(log_prob - batch.old_log_prob)
    assert ((ratio - 1).abs() > 0.1).any()
    assert ((values - batch.old_values).abs() > 0.2).any()
    policy_loss = -torch.min(batch.advantages * ratio, batch.advantages * torch.clamp(ratio, 0.9, 1.1)).mean()
    if clip_range_vf is not None:
        values = batch.old_values + torch.clamp(values - batch.old_values, -clip_range_vf, clip_range_vf)
    value_loss = functional.mse_loss(batch.returns, values)
    expected = policy_loss + 0.07 * -torch.mean(entropy) + 0.3 * value_loss
    expected.backward()
    assert_equal_to_rounding(loss, expected)
    for gradient, parameter in zip(gradients, policy.parameters(), strict=True):
        assert_equal_to_rounding(gradient, parameter.grad)
    assert_equal_to_rounding(evaluation.log_ratio, (log_prob - batch.old_log_prob).detach())
    assert not evaluation.log_ratio.requires_grad


def test_without_a_closed_form_the_entropy_term_is_the_log_probability(monkeypatch):
    policy = make_policy(CONTINUOUS)
    batch = random_batch(policy, 8)
    evaluate = policy.evaluate_actions
    monkeypatch.setattr(policy, "evaluate_actions", lambda *a: (*evaluate(*a)[:2], None))
    log_prob = evaluate(batch.observations, batch.actions)[1]
    for terms in (a2c_terms(policy, batch, batch.advantages), ppo_terms(policy, batch, batch.advantages, 0.1).terms):
        assert_equal_to_rounding(terms["entropy"], log_prob)


def test_a_transitions_terms_do_not_depend_on_the_others():
    policy = make_policy(DISCRETE)
    batch = random_batch(policy, 16)
    together = ppo_terms(policy, batch, batch.advantages, 0.1).terms
    half = select(batch, torch.arange(8, 16))
    alone = ppo_terms(policy, half, half.advantages, 0.1).terms
    for loss, term in together.items():
        assert_equal_to_rounding(term[8:], alone[loss])


def filled_buffer(T: int, N: int, observation_space: spaces.Space) -> RolloutBuffer:
    """A buffer in which every number of the transition of environment n at time t is derived from 10·t + n."""
    is_dict = isinstance(observation_space, spaces.Dict)
    kind = DictRolloutBuffer if is_dict else RolloutBuffer
    buffer = kind(T, observation_space, DISCRETE, device="cpu", n_envs=N)

    def of(space: spaces.Space, number: np.ndarray) -> np.ndarray:
        return np.broadcast_to(number.reshape(N, *[1] * len(space.shape)), (N, *space.shape)).astype(space.dtype)

    for t in range(T):
        number = 10 * t + np.arange(N)
        observation = (
            {key: of(space, number) for key, space in observation_space.items()}
            if is_dict
            else of(observation_space, number)
        )
        # [N, 1], as a policy gives values
        value = torch.as_tensor(number + 0.5).float().reshape(N, 1)
        buffer.add(observation, number % 4, number + 0.25, np.zeros(N), value, torch.as_tensor(number + 0.75).float())
    buffer.compute_returns_and_advantage(torch.zeros(N, 1), np.zeros(N))
    return buffer


SPACES = {
    "vector": VECTOR,
    "image": spaces.Box(0, 255, (4, 8, 8), np.uint8),
    "dict": spaces.Dict({"a": VECTOR, "b": spaces.Box(0, 255, (1, 8, 8), np.uint8)}),
}


@pytest.mark.parametrize("space", SPACES)
def test_the_whole_rollout_is_grouped_by_environment_and_leaves_the_buffer_unchanged(space):
    T, N = 5, 3
    buffer = filled_buffer(T, N, SPACES[space])
    arrays = [key for key, value in vars(buffer).items() if isinstance(value, np.ndarray)]
    before = {key: getattr(buffer, key).copy() for key in arrays}
    rollout = whole_rollout(buffer, torch.device("cpu"))
    numbers = np.array([10 * t + n for n in range(N) for t in range(T)])  # grouped by environment

    def first(of: torch.Tensor) -> np.ndarray:
        return of.reshape(N * T, -1)[:, 0].numpy()

    observations = rollout.observations if space == "dict" else {"": rollout.observations}
    for key, observation in observations.items():
        part = SPACES["dict"][key] if space == "dict" else SPACES[space]
        assert observation.shape == (N * T, *part.shape)
        np.testing.assert_array_equal(first(observation), numbers.astype(part.dtype))
    np.testing.assert_array_equal(first(rollout.actions), numbers % 4)
    np.testing.assert_allclose(rollout.old_values, numbers + 0.5)
    np.testing.assert_allclose(rollout.old_log_prob, numbers + 0.75)
    np.testing.assert_array_equal(rollout.advantages, buffer.advantages.T.flatten())
    np.testing.assert_array_equal(rollout.returns, buffer.returns.T.flatten())
    assert not buffer.generator_ready
    for key in arrays:
        np.testing.assert_array_equal(getattr(buffer, key), before[key])


@pytest.mark.parametrize("space", SPACES)
def test_the_whole_rollout_is_the_same_after_stable_baselines3_has_flattened_its_buffer(space):
    buffer = filled_buffer(5, 3, SPACES[space])
    before = whole_rollout(buffer, torch.device("cpu"))
    next(buffer.get(4))
    after = whole_rollout(buffer, torch.device("cpu"))
    for a, b in zip(before, after, strict=True):
        for left, right in zip(*[list(x.values()) if isinstance(x, dict) else [x] for x in (a, b)], strict=True):
            assert torch.equal(left, right)


def test_selecting_takes_the_same_transitions_of_every_part():
    rollout = whole_rollout(filled_buffer(5, 3, SPACES["dict"]), torch.device("cpu"))
    chosen = select(rollout, torch.tensor([7, 2]))
    assert chosen.observations["a"][:, 0].tolist() == [21.0, 20.0]  # environment 1 at 2, environment 0 at 2
    assert chosen.old_values.tolist() == [21.5, 20.5]


def test_only_a2c_and_ppo_have_known_losses():
    dqn = stable_baselines3.DQN("MlpPolicy", gymnasium.make("CartPole-v1"), device="cpu")
    rollout = whole_rollout(filled_buffer(5, 3, VECTOR), torch.device("cpu"))
    with pytest.raises(TypeError, match="DQN cannot be measured; the losses of A2C and PPO are known"):
        rollout_terms(dqn, rollout)


def test_a_policy_of_dict_observations_is_evaluated():
    torch.manual_seed(0)
    space = spaces.Dict({"a": VECTOR, "c": spaces.Box(-1, 1, (2,), np.float32)})
    policy = MultiInputActorCriticPolicy(space, DISCRETE, lambda _: 1e-3)
    rollout = whole_rollout(filled_buffer(5, 3, space), torch.device("cpu"))
    terms = a2c_terms(policy, rollout, rollout.advantages)
    assert {loss: term.shape for loss, term in terms.items()} == dict.fromkeys(("policy", "value", "entropy"), (15,))
