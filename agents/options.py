"""From flags, a YAML file and a saved run to the configuration of one.

Options come from four places, the later winning: published defaults of the algorithm, the run that is resumed, a YAML
file, flags. Free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlgns.agents.config import CHANGEABLE_ON_RESUME, ResolvedConfig, TrainConfig, resolved
from rlgns.runs.options import parse_run

DESCRIPTION = (
    "Train A2C or PPO on many environments and measure the gradient noise scale while training.\n"
    "[..] names defaults that depend on other options."
)


def parse(arguments: Sequence[str]) -> ResolvedConfig:
    """The configuration that flags, a YAML file (`--config FILE`) and, with `--resume`, the run itself describe.

    Raises ValueError with one line on bad input; `--help` exits.
    """
    return resolved(
        parse_run(arguments, default=TrainConfig(), changeable=CHANGEABLE_ON_RESUME, description=DESCRIPTION)
    )
