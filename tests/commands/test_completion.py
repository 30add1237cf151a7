"""Completion in real shells, the list of tasks, and help that answers without torch."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from support.processes import child_environment

from rlgns.agents.config import TrainConfig
from rlgns.commands.cli import COMMANDS, main
from rlgns.commands.completion import SHELLS, script, whole_parser
from rlgns.runs.values import flag

BASH = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={place} COMPREPLY=()
function=$(complete -p rlgns | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function rlgns
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "rlgns.bash"
    path.write_text(script("bash", COMMANDS))
    return path


def completed(path, *words, cwd):
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    code = BASH.format(script=path, words=quoted, place=len(words) - 1)
    done = subprocess.run(["bash", "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_tasks_flags_values_and_files(bash_script, tmp_path):
    (tmp_path / "my_sweep.yaml").touch()
    (tmp_path / "my_runs").mkdir()

    def offered(*words):
        return completed(bash_script, "rlgns", *words, cwd=tmp_path)

    assert offered("") == set(COMMANDS)
    assert offered("comp") == {"compare", "completion"}
    assert {"atari", "digits", "quadratic", "vae"} <= offered("train", "")
    assert offered("train", "atari", "--algo", "") == {"a2c", "ppo"}
    assert offered("train", "atari", "--goals", "5", "20", "--see") == {"--seed"}
    assert offered("train", "digits", "--opt") == {"--optimizer", "--optimizer-eps"}
    assert offered("sweep", "my") == {"my_sweep.yaml", "my_runs"}
    assert offered("sweep", "my_sweep.yaml", "--dry") == {"--dry-run"}
    assert offered("train", "atari", "--config", "my_s") == {"my_sweep.yaml"}
    assert offered("probe", "my_runs", "--max-") == {"--max-transitions", "--max-examples"}
    assert offered("demo", "") == {"cartpole", "quadratic", "temperature"}
    assert offered("completion", "") == set(SHELLS)


def test_the_completion_knows_every_flag_of_training():
    text = script("bash", COMMANDS)
    assert all(flag(field.name) in text for field in fields(TrainConfig))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_has_its_syntax(shell, tmp_path):
    path = tmp_path / f"rlgns.{shell}"
    path.write_text(script(shell, COMMANDS))
    if program := shutil.which(shell):
        subprocess.run([program, "-n", path], check=True)
    head = {"bash": "complete -o bashdefault -F", "zsh": "#compdef rlgns", "fish": "complete -c rlgns"}
    assert head[shell] in path.read_text()


def test_a_shell_that_is_not_known_is_one_line_and_the_present_one_is_the_default(capsys, monkeypatch):
    assert main(["completion", "fisch"]) == 2
    assert capsys.readouterr().err == "error: unknown shell 'fisch'; use fish\n"
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert main(["completion"]) == 0
    assert capsys.readouterr().out.startswith("#compdef rlgns")


@pytest.mark.parametrize(("command", "tasks"), [("train", ["atari", "digits", "self_play"]), ("bench", ["atari"])])
def test_the_help_of_a_command_with_tasks_lists_them_with_a_line_each(command, tasks, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for task in tasks:
        assert re.search(rf"^  {task} +[A-Z]\w+", text, re.MULTILINE)


WITH_A_TASK = ["train atari", "train digits", "train quadratic", "train self_play", "train", "bench atari"]


@pytest.mark.parametrize("words", [*WITH_A_TASK, *sorted(COMMANDS.keys() - {"train"})])
def test_help_is_answered_without_torch(words):
    code = (
        "import sys; from rlgns.commands.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "sys.exit(str([name for name in ('torch', 'wandb', 'stable_baselines3') if name in sys.modules] or ''))"
    )
    command = [sys.executable, "-c", code, *words.split(), "--help"]
    done = subprocess.run(command, env=child_environment(COLUMNS=80), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) in {(0, ""), (1, "")}, done.stderr
    assert done.stdout.startswith("usage: rlgns")
    assert max(map(len, done.stdout.splitlines())) <= 160  # descriptions stay as they are written


def test_every_command_has_a_place_in_the_parser_and_help_is_free_of_broken_names():
    whole = whole_parser(COMMANDS)
    assert all(f"{name} " in whole.format_help() or name in whole.format_help() for name in COMMANDS)
    command = [sys.executable, "-m", "rlgns", "train", "atari", "--help"]
    text = subprocess.run(command, env=child_environment(COLUMNS=80), capture_output=True, text=True, check=True).stdout
    assert not [line for line in text.splitlines() if re.search(r"--?\w*-$", line)]
    assert "Also --n-envs." in text
