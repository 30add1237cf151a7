"""What a process of the tests has loaded before it becomes a run: all that a run imports sooner or later.

`torch._dynamo` is among it because the first step of any optimizer imports it. Nothing here computes: a process that
has threads must not be forked.
"""

import gc

import charset_normalizer  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg  # noqa: F401
import pydantic  # noqa: F401
import scipy.special  # noqa: F401
import torch._dynamo  # noqa: F401

import rlgns.agents.task
import rlgns.commands.cli
import rlgns.noise.grouping
import rlgns.report.run_figures  # noqa: F401

gc.freeze()  # a collection in a forked process passes over what was loaded here
