"""Train A2C or PPO on an Atari game or a Gymnasium environment and measure the gradient noise scale; see `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # works in a checkout without installation

from rlgns.agents.cli import main

if __name__ == "__main__":
    sys.exit(main())
