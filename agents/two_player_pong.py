"""Pong for two players, thousands of games at a time, in torch tensors.

A ball crosses a court of width and height 1 and bounces off the walls. Each player moves a paddle up and down at a side
of the court. Where the ball meets a paddle it flies back, the more steeply the further from the paddle's middle it was
hit; where it does not, the other player wins the point, and the game is over. Players see where ball and paddles are,
and not how fast the ball flies: that has to be remembered.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_ACTIONS = 3
"""Up, stay, down."""

NUM_SEEN = 4
"""Numbers that a player sees: distance of the ball, its height, the own paddle's height, and the other one's."""

HALF_PADDLE = 0.1
PADDLE_SPEED = 0.04
BALL_SPEED = 0.05
STEEPEST = 0.06
"""Largest vertical speed of the ball."""

LONGEST = 200
"""Steps after which a game ends without a winner."""


class TwoPlayerPong:
    """Games that are independent of one another; those that end are started anew.

    Attributes:
        ball: [N, 2], x from 0 (first player) to 1 (second player), and y from 0 to 1.
        velocity: [N, 2], of the balls by step.
        paddles: [N, 2], heights of the middles of the first and the second player's paddles.
        time: [N], steps of the games.
    """

    def __init__(self, num_games: int, seed: int) -> None:
        """Start the games.

        Args:
            num_games: N.
            seed: Of the serves.
        """
        self.generator = torch.Generator().manual_seed(seed)
        self.ball, self.velocity = torch.zeros(num_games, 2), torch.zeros(num_games, 2)
        self.paddles, self.time = torch.zeros(num_games, 2), torch.zeros(num_games, dtype=torch.long)
        self._serve(torch.ones(num_games, dtype=torch.bool))

    def seen_by(self, player: int) -> Tensor:
        """What a player sees [N, 4], from −1 to 1; both see the court from their own side.

        Args:
            player: 0 or 1.
        """
        distance = self.ball[:, 0] if player == 0 else 1 - self.ball[:, 0]
        own, other = self.paddles[:, player], self.paddles[:, 1 - player]
        return torch.stack([distance, self.ball[:, 1], own, other], 1).clamp(0, 1) * 2 - 1

    def step(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let both players act; games that end are served anew by `restart`.

        Args:
            first: Actions of the first player, [N].
            second: Actions of the second player, [N].

        Returns:
            The first player's reward [N] (1 for a point won, −1 for one lost), and whether each game has been decided
            or has lasted too long, [N] each.
        """
        moves = torch.stack([first, second], 1) - 1
        self.paddles = (self.paddles + PADDLE_SPEED * moves).clamp(HALF_PADDLE, 1 - HALF_PADDLE)
        self.ball, self.time = self.ball + self.velocity, self.time + 1
        height = self.ball[:, 1]
        self.velocity[:, 1] = torch.where((height < 0) | (height > 1), -self.velocity[:, 1], self.velocity[:, 1])
        self.ball[:, 1] = torch.where(height < 0, -height, torch.where(height > 1, 2 - height, height))
        reward = torch.zeros(len(self.ball))
        for player, (arrived, gain) in enumerate(((self.ball[:, 0] <= 0, -1.0), (self.ball[:, 0] >= 1, 1.0))):
            offset = (self.ball[:, 1] - self.paddles[:, player]) / HALF_PADDLE
            is_hit = arrived & (offset.abs() <= 1)
            self.velocity[:, 0] = torch.where(is_hit, -self.velocity[:, 0], self.velocity[:, 0])
            self.velocity[:, 1] = torch.where(is_hit, STEEPEST * offset, self.velocity[:, 1])
            self.ball[:, 0] = torch.where(is_hit, self.ball[:, 0].clamp(0, 1), self.ball[:, 0])
            reward = torch.where(arrived & ~is_hit, gain, reward)
        decided = reward != 0
        return reward, decided, (self.time >= LONGEST) & ~decided

    def restart(self, over: Tensor) -> None:
        """Serve the games that are over.

        Args:
            over: Which, [N].
        """
        if over.any():
            self._serve(over)

    def _serve(self, which: Tensor) -> None:
        """The ball starts in the middle, towards one of the players, and the paddles in the middle."""
        count = int(which.sum())
        side = torch.randint(2, (count,), generator=self.generator) * 2.0 - 1
        slope = torch.rand(count, generator=self.generator) * 2 - 1
        self.ball[which], self.paddles[which], self.time[which] = 0.5, 0.5, 0
        self.velocity[which] = torch.stack([BALL_SPEED * side, STEEPEST * slope], 1)


def follow_the_ball(seen: Tensor) -> Tensor:
    """A player by rule: it keeps the paddle at the height of the ball, and is outrun by steep balls.

    Args:
        seen: What the player sees, [N, 4].

    Returns:
        Actions [N].
    """
    return 1 + torch.sign((seen[:, 1] - seen[:, 2]) * (torch.abs(seen[:, 1] - seen[:, 2]) > PADDLE_SPEED)).long()
