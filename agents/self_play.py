"""Self-play: a learner against its present and its past selves, as a vector environment of Stable-Baselines3.

Every game is played against an opponent of its own: the learner itself as it was when the rollout began, or, for a
share of the games, one of a few past selves (as OpenAI Five played, Berner et al. 2019, arXiv:1912.06680). Opponents
are recurrent, too, and keep their hidden states. Given the opponents, games are independent of one another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlgns.agents.two_player_pong import NUM_ACTIONS, NUM_SEEN, TwoPlayerPong, follow_the_ball

PAST_SHARE = 0.2
"""Share of the games against past selves [OpenAI Five]."""

NUM_PAST = 4
"""Past selves that are kept, the latest ones."""


class Opponents:
    """The second players of all games.

    Attributes:
        selves: Frozen policies: the present one first, and then past ones.
        plays: Which of them plays each game, [N].
    """

    def __init__(self, num_games: int, seed: int) -> None:
        """Without a policy yet, all opponents act at random.

        Args:
            num_games: N.
            seed: Of who plays which game, and of their actions.
        """
        self.generator = torch.Generator().manual_seed(seed)
        self.selves: list[RecurrentActorCriticPolicy] = []
        self.plays = torch.zeros(num_games, dtype=torch.long)
        self._states: list[Tensor] = []

    def follow(self, policy: RecurrentActorCriticPolicy, *, remember: bool) -> None:
        """Take over the learner's present policy.

        Args:
            policy: The learner's.
            remember: Whether to keep it among the past selves as well.
        """
        # neither the optimiser nor the graph of the distribution that was evaluated last
        fresh = {id(policy.optimizer): None, id(policy.action_dist): make_proba_distribution(policy.action_space)}
        frozen = copy.deepcopy(policy, fresh).requires_grad_(False)
        frozen.set_training_mode(False)
        past = self.selves[1:]
        if remember:
            past = [frozen, *past][:NUM_PAST]
        self.selves = [frozen, *past]
        if not self._states:
            lstm = frozen.lstm_actor
            shape = lstm.num_layers, len(self.plays), lstm.hidden_size
            self._states = [torch.zeros(shape), torch.zeros(shape)]

    def draw(self, over: Tensor) -> None:
        """Choose the opponents of games that begin, and clear what their predecessors remembered.

        Args:
            over: Which games begin, [N].
        """
        count = int(over.sum())
        is_past = torch.rand(count, generator=self.generator) < PAST_SHARE
        number = torch.randint(1, max(len(self.selves), 2), (count,), generator=self.generator)
        self.plays[over] = torch.where(is_past & (len(self.selves) > 1), number, 0)
        for state in self._states:
            state[:, over] = 0

    @torch.no_grad()
    def act(self, seen: Tensor) -> Tensor:
        """Actions of the second players.

        Args:
            seen: What they see, [N, 4].

        Returns:
            Actions [N].
        """
        if not self.selves:
            return torch.randint(NUM_ACTIONS, (len(seen),), generator=self.generator)
        actions = torch.zeros(len(seen), dtype=torch.long)
        for number, policy in enumerate(self.selves):
            games = torch.nonzero(self.plays == number).flatten()
            if len(games):
                states = self._states[0][:, games], self._states[1][:, games]
                probabilities, after = action_probabilities(policy, seen[games], states)
                actions[games] = torch.multinomial(probabilities, 1, generator=self.generator).flatten()
                for state, new in zip(self._states, after, strict=True):
                    state[:, games] = new
        return actions


def action_probabilities(
    policy: RecurrentActorCriticPolicy, seen: Tensor, states: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The probabilities of a recurrent policy's actions [n, 3], and its hidden states afterwards.

    Args:
        policy: The policy.
        seen: What it sees, [n, 4].
        states: Hidden and cell states [layers, n, H], cleared where a game begins.
    """
    distribution, (hidden, cell) = policy.get_distribution(seen, states, torch.zeros(len(seen)))
    probabilities: Tensor = distribution.distribution.probs  # type: ignore[union-attr]  # of discrete actions, one
    return probabilities, (hidden, cell)


class SelfPlayPong(VecEnv):
    """The first players' side of N games of Pong.

    Attributes:
        game: The games.
        opponents: The second players.
    """

    def __init__(self, num_games: int, seed: int) -> None:
        """Start the games.

        Args:
            num_games: N.
            seed: Of serves and opponents.
        """
        super().__init__(num_games, spaces.Box(-1, 1, (NUM_SEEN,), np.float32), spaces.Discrete(NUM_ACTIONS))
        self.game, self.opponents = TwoPlayerPong(num_games, seed), Opponents(num_games, seed + 1)
        self._actions = torch.zeros(num_games, dtype=torch.long)

    def reset(self) -> NDArray[np.float32]:
        """What the first players see, [N, 4]; the games go on."""
        return self.game.seen_by(0).numpy()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the first players' actions, [N]."""
        self._actions = torch.as_tensor(actions)

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """What the first players see, their rewards, which games are over, and the results of those."""
        reward, decided, too_long = self.game.step(self._actions, self.opponents.act(self.game.seen_by(1)))
        over = decided | too_long
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if over.any():
            last, games = self.game.seen_by(0).numpy(), torch.nonzero(over).flatten().tolist()
            for game in games:
                episode = {"r": float(reward[game]), "l": int(self.game.time[game]), "t": 0.0}
                infos[game] = {
                    "episode": episode, "TimeLimit.truncated": bool(too_long[game]), "terminal_observation": last[game]
                }  # fmt: skip
            self.game.restart(over)
            self.opponents.draw(over)
        return self.game.seen_by(0).numpy(), reward.numpy(), over.numpy(), infos

    def close(self) -> None:
        """There is nothing to close."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds are given when the games are made; this changes none."""
        return [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for every game."""
        return [getattr(self, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: games have no attributes of their own."""
        raise AttributeError(f"games have no attribute {attr_name} of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refused: games have no methods of their own."""
        raise AttributeError(f"games have no method {method_name} of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Nothing wraps a game."""
        return [False] * len(list(self._get_indices(indices)))


@torch.no_grad()
def mean_return(policy: RecurrentActorCriticPolicy, num_games: int, seed: int) -> float:
    """The mean return of a policy against the player by rule.

    Args:
        policy: The first player, which draws its actions.
        num_games: Games, of which each is played once.
        seed: Of serves and actions.
    """
    game, generator = TwoPlayerPong(num_games, seed), torch.Generator().manual_seed(seed)
    lstm = policy.lstm_actor
    states = (torch.zeros(lstm.num_layers, num_games, lstm.hidden_size),) * 2
    result, running = torch.zeros(num_games), torch.ones(num_games, dtype=torch.bool)
    was_training = policy.training
    policy.set_training_mode(False)
    while running.any():
        probabilities, states = action_probabilities(policy, game.seen_by(0), states)
        actions = torch.multinomial(probabilities, 1, generator=generator).flatten()
        reward, decided, too_long = game.step(actions, follow_the_ball(game.seen_by(1)))
        result += torch.where(running, reward, 0)
        running &= ~(decided | too_long)
        game.restart(decided | too_long)
    policy.set_training_mode(was_training)
    return float(result.mean())
