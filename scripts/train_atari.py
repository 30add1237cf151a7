"""Train A2C or PPO on an Atari game or a Gymnasium environment and measure the gradient noise scale; `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # runs from a checkout that is not installed, too

from rlgns.agents.cli import main

if __name__ == "__main__":
    sys.exit(main())
