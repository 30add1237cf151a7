"""`python -m rlgns`, where the command itself is not on the path."""

import sys

from rlgns.commands.cli import main

sys.exit(main())
