"""Errors of the library name arguments; errors of a command name flags."""

import ast
import re
from pathlib import Path

import pytest
import stable_baselines3
from support.environments import RandomWalks

from rlgns.agents import NoiseScaleCallback, RolloutMeasurer
from rlgns.agents.cli import main as train
from rlgns.runs.arguments import Argument, ArgumentError, in_flags
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.ranks import ALONE

ROOT = Path(__file__).parents[2]
LIBRARY = [
    *(
        path
        for room in ("noise", "gradients", "study", "report")
        for path in (ROOT / "rlgns" / room).glob("*.py")
        if path.name != "run_command.py"  # writes a command with its flags
    ),
    *(ROOT / "rlgns" / "runs" / f"{name}.py" for name in ("ranks", "goals", "records", "machine", "progress")),
    *(
        ROOT / "agents" / f"{name}.py"
        for name in (
            "algorithms", "atari", "cadence", "collecting", "emulators", "environments", "forwards", "frozen", "losses",
            "measuring", "models", "observations", "on_policy", "policies", "probing", "recorder", "rollouts",
            "stepping",
        )
    ),
]  # fmt: skip
"""Modules that scripts may import; scripts do not have the flags of the commands."""

FLAG = re.compile(r"(?<![\w-])--[a-z]")


def text_in(path: Path) -> list[str]:
    """The strings of a file, without docstrings and without the command-line spelling in `Argument`."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Argument":
            skipped |= {id(part) for part in ast.walk(node.args[1])}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped
    ]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_text_of_the_library_names_a_flag(path):
    # `--c…` are the page's own colours, in its style sheet
    assert not [text for text in text_in(path) if FLAG.search(text) and text != "--c"]


def test_an_error_names_arguments_and_its_command_flags(capsys):
    error = ArgumentError("a 1 is too few; use ", Argument.of("num_envs", 4), ", or another ", Argument.of("out"))
    assert str(error) == "a 1 is too few; use num_envs=4, or another out"
    assert in_flags(error) == "a 1 is too few; use --num-envs 4, or another --out"
    assert in_flags(ValueError("of the library")) == "of the library"

    def work() -> int:
        raise error

    assert exit_code_of(work) == 2
    assert capsys.readouterr().err == "error: a 1 is too few; use --num-envs 4, or another --out\n"


SMALL = ["--env=CartPole-v1", "--num-envs=2", "--num-steps=8", "--total-transitions=16", "--wandb=disabled"]


def test_too_few_environments_are_refused_by_arguments_in_a_script_and_by_flags_at_the_command_line(capsys, tmp_path):
    model = stable_baselines3.A2C("MlpPolicy", RandomWalks(2, seed=0), device="cpu")
    with pytest.raises(ValueError, match="n_envs 2 is too few") as error:
        model.learn(10, callback=NoiseScaleCallback())
    assert 'use make_vec_env(…, n_envs=4), or NoiseScaleCallback(unit="transition"), which' in str(error.value)
    assert not FLAG.search(str(error.value))
    assert train([*SMALL, f"--out={tmp_path / 'run'}"]) == 2
    line = capsys.readouterr().err
    assert "use --num-envs 4, or --unit transition, which" in line
    assert "n_envs=" not in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("num_groups", [3, 5, 8])
def test_environments_that_do_not_divide_are_refused_before_the_first_step_without_flags(num_groups):
    environments = RandomWalks(4, seed=0)
    model = stable_baselines3.A2C("MlpPolicy", environments, device="cpu")
    with pytest.raises(ValueError, match=rf"num_envs 4 is not divisible into {num_groups} groups; use one of") as error:
        model.learn(10, callback=NoiseScaleCallback(measurer=RolloutMeasurer(num_groups=num_groups)))
    assert not FLAG.search(str(error.value))
    assert environments.num_steps == 0


def test_a_device_that_is_not_there_is_refused_in_both_tongues():
    with pytest.raises(ArgumentError, match="device cuda:77 is not available here; use 'auto' or 'cpu'") as error:
        ALONE.device("cuda:77")
    assert in_flags(error.value) == "device cuda:77 is not available here; use --device auto or cpu"
