import os
import signal
from pathlib import Path

# what tests start imports `support`, and other tests, as the tests do (`pythonpath` in pyproject.toml)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *(str(path) for path in Path(__file__).parent.iterdir() if path.is_dir())]
    + ([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])
)
# before torch is imported; the networks of the tests are small, and threads are shared with other work
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from support.processes import num_threads

torch.set_num_threads(num_threads())

# what ignores a signal hands that on to the processes that it starts, and tests of signals would wait for ever
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as pytest-xdist has it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup has it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

LONG = (
    "test_quadratic", "test_readme", "test_devices", "test_ranks_of_runs", "test_supervised_sweep", "test_slurm",
    "test_sweep_command",
    "test_models", "test_forwards", "test_learning", "test_wandb_agent", "test_train_atari", "test_algorithms",
    "test_sweep_interruptions", "test_ranks_of_trainers", "test_evaluating", "test_vectorization", "test_hf_trainer",
)  # fmt: skip
"""Files that take longest come first: where a process takes a file at a time, none ends long after the other."""

NUMERICAL = {
    "test_additivity", "test_algorithms", "test_capture", "test_estimators",
    "test_fast_rollouts", "test_forwards", "test_gradients",
    "test_group_backward", "test_layer_products", "test_learning", "test_losses", "test_measuring",
    "test_normalisation", "test_optimizers", "test_parallel", "test_peers", "test_ranks_of_gradients",
    "test_ranks_of_runs", "test_sharpness", "test_unusual_policies",
}  # fmt: skip
"""Files whose tests compare computations that round. Other files mark their tests by `pytest.mark.numerical`."""

OVER_A_SECOND = frozenset((Path(__file__).parent / "over_a_second.txt").read_text().split())
"""Test functions that `scripts/check.py --quick` leaves out besides the slow ones; `--record` writes the file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items:
        if item.path.stem in NUMERICAL:
            item.add_marker(pytest.mark.numerical)
        if item.nodeid.partition("[")[0] in OVER_A_SECOND:
            item.add_marker(pytest.mark.over_a_second)


@pytest.fixture(autouse=True)
def a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed does not depend on what else the machine does."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
