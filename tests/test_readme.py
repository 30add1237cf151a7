"""What the READMEs say can be typed can be typed: every Python block and every command runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import ale_py
import gymnasium
import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack
from support.processes import HANG
from support.whole_runs import COMMAND, run

from rlgns.commands.cli import COMMANDS

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "agents", "rlgns", "rlgns/integrations", "rlgns/tasks")
READMES = [ROOT / folder / "README.md" for folder in FOLDERS]


def blocks(language: str) -> list[str]:
    return [block for path in READMES for block in re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)]


def test_ci_runs_exactly_the_readme_s_test_command():
    (command,) = [line for line in READMES[0].read_text().splitlines() if line.endswith("scripts/check.py")]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_first_readme_is_short():
    assert len(READMES[0].read_bytes()) < 11_000


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_of_the_readmes_runs_as_it_stands_and_prints_a_noise_scale(tmp_path, number):
    block = blocks("python")[number]
    action = "default" if "lightning" in block else "error"  # Lightning itself warns of workers and of PyTorch
    script = tmp_path / "block.py"
    script.write_text(f"import warnings\nwarnings.simplefilter({action!r})\n{block}")
    done = run(tmp_path, script=script)
    assert done.exit_code == 0, done.err
    assert re.search(r"\[\S+, \S+[\])]|undetermined", done.out)


SHORT = {
    "rlgns train atari --eval-every": "--total-transitions 400 --eval-every 200 --wandb disabled",
    "rlgns train atari": "--num-envs 4 --num-steps 8 --total-transitions 64 --wandb disabled",
    "scripts/train_atari.py": "--num-envs 4 --num-steps 5 --total-transitions 60 --wandb disabled",
    "rlgns play": "--record game.mp4 --episodes 1",
    "rlgns train digits": "--max-steps 5 --wandb disabled",
    "rlgns probe": "--num-envs 4 --max-transitions 400",
    "rlgns sweep": "--dry-run",
    "rlgns compare": "--out page",
}
"""Flags that make a command of the READMEs a matter of seconds; the later flag wins."""

ELSEWHERE = ("rlgns demo", "rlgns branch", "rlgns train mnist", "torchrun", "srun")
"""Commands that other tests run: they take minutes, data or several processes."""


def commands() -> list[str]:
    lines = [line.partition("   #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    lines = [line.split(" && ")[-1].removeprefix(".venv/bin/").removeprefix("python ") for line in lines]
    return [line for line in lines if line and not line.startswith((*ELSEWHERE, "scripts/check.py"))]


def save_a_model_of_pong(path: Path) -> None:
    """What a user of Stable-Baselines3 brings along."""
    gymnasium.register_envs(ale_py)
    environments = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=4), n_stack=4)
    A2C("CnnPolicy", environments, device="cpu").learn(20).save(path)
    environments.close()


@pytest.mark.slow
def test_commands_of_the_readmes_run_in_their_order(tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    for name in ("breakout_a2c", "digits"):  # what the sweeps of the READMEs, hours and minutes long, leave behind
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "runs.zip").symlink_to(ROOT / "scripts/studies" / name / "runs.zip")
    save_a_model_of_pong(tmp_path / "model.zip")
    assert len(commands()) >= 8
    for command in commands():
        extra = next((flags for start, flags in SHORT.items() if command.startswith(start)), "")
        line = command if command.startswith("rlgns") else f"python {command}"
        program, *words = shlex.split(f"{line} {extra}")
        if program == "python" and words[0].startswith("-"):
            subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, timeout=HANG)
            continue
        script = COMMAND if program == "rlgns" else ROOT / words.pop(0)
        done = run(tmp_path, *words, script=script)
        assert done.exit_code == 0, f"{command}\n{done.err}"
        assert "Traceback" not in done.err


def test_every_command_is_named_in_a_readme():
    text = "\n".join(path.read_text() for path in (*READMES, *(ROOT / "scripts").rglob("README.md")))
    assert not [name for name in (*COMMANDS, "pack") if f"rlgns {name}" not in text and f"`{name}`" not in text]


@pytest.mark.parametrize(
    "path", [*READMES, ROOT / "scripts/studies/README.md", ROOT / "scripts/bench/README.md"], ids=str
)
def test_links_of_the_readmes_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert not [target for target in targets if not (path.parent / target).exists()]


def test_every_package_is_on_the_map():
    text = READMES[0].read_text()
    packages = [path.parent.name for path in (ROOT / "rlgns").glob("*/__init__.py")]
    assert not [name for name in packages if f"rlgns/{name}/" not in text and f"rlgns.{name}" not in text]
