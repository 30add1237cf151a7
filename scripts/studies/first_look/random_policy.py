"""Mean return of whole games under a uniformly random policy, with its standard error, as a baseline for learning.

python scripts/studies/first_look/random_policy.py breakout
"""

import sys
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[3]))

from rlgns.agents.atari import AtariVecEnv

NUM_GAMES = 500


def main(game: tyro.conf.Positional[str] = "breakout", /) -> None:
    """Play until every environment has finished its share of the games, so that short games are not favoured."""
    environments = AtariVecEnv(game, 20, seed=0)
    environments.reset()
    rng = np.random.default_rng(0)
    returns: list[list[float]] = [[] for _ in range(environments.num_envs)]
    share = NUM_GAMES // environments.num_envs
    while min(len(games) for games in returns) < share:
        _, _, _, infos = environments.step(rng.integers(environments.action_space.n, size=environments.num_envs))
        for games, info in zip(returns, infos, strict=True):
            if "episode" in info:
                games.append(info["episode"]["r"])
    played = np.concatenate([games[:share] for games in returns])
    print(f"{game}: {played.mean():.2f} ± {played.std(ddof=1) / len(played) ** 0.5:.2f} over {len(played)} games")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
