"""`python -m rlgns`, where the command itself is not on the path."""

import sys

from rlgns.cli import main

sys.exit(main())
