"""--quiet, --verbose, and repeating a run from its config.json."""

import json

import pytest

from rlgns.agents.options import parse
from rlgns.commands.cli import main
from rlgns.runs.options import as_mapping
from rlgns.runs.verbosity import is_quiet, is_verbose
from rlgns.tasks.quadratic import main as quadratic

SHORT = ["--max-steps=30", "--wandb=disabled"]


def test_quiet_leaves_the_result_alone_and_verbose_adds_options_and_checkpoints(tmp_path, capsys):
    said = {}
    for flags in ([], ["--quiet"], ["-v"]):
        assert main(["train", "quadratic", *SHORT, f"--out={tmp_path / str(len(said))}", *flags]) == 0
        said["".join(flags)] = capsys.readouterr()
        assert not is_quiet()
        assert not is_verbose()
    assert said["--quiet"].err == ""
    assert "Finished" in said["--quiet"].out
    assert "→" in said[""].err
    assert "max_steps = 30" not in said[""].err
    assert "max_steps = 30" in said["-v"].err
    assert "versions: Python" in said["-v"].err
    files = [{path.name for path in (tmp_path / str(run)).iterdir()} for run in range(3)]
    assert files[0] == files[1] == files[2]


def test_quiet_and_verbose_together_are_refused_in_one_line(capsys):
    assert quadratic([*SHORT, "--quiet", "--verbose"]) == 2
    line = capsys.readouterr().err
    assert "not allowed with argument" in line
    assert line.count("\n") == 1


def test_quiet_keeps_errors(capsys):
    assert quadratic([*SHORT, "--quiet", "--batch-size=1"]) == 2
    assert "error: batch_size 1" in capsys.readouterr().err


SMALL = {
    "env": "CartPole-v1", "algo": "ppo", "num_envs": 4, "num_steps": 16, "total_transitions": 128, "gamma": 0.97,
    "learning_rate": 1e-5, "goals": [400.0], "wandb": "disabled",
}  # fmt: skip


def config_of_a_run(folder):
    options = as_mapping(parse([f"--{name}={value}" for name, value in SMALL.items()]))
    folder.mkdir()
    content = {"options": {**options, "out": str(folder)}, "task": "PPO on CartPole-v1", "provenance": {}}
    (folder / "config.json").write_text(json.dumps(content))
    return options


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_run_is_repeated_from_its_directory_or_its_config(tmp_path, name):
    options = config_of_a_run(tmp_path / "run")
    again = parse(["--config", str(tmp_path / "run" / name)])
    assert as_mapping(again) == options
    assert again.out is None
    assert as_mapping(parse(["--config", str(tmp_path / "run" / name), "--seed=3"])) == {**options, "seed": 3}


def test_a_repeated_run_does_not_import_a_module_that_was_not_typed(tmp_path):
    config_of_a_run(tmp_path / "run")
    path = tmp_path / "run/config.json"
    content = json.loads(path.read_text())
    content["options"]["env"] = "somebodys_module:Env-v0"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="--allow-env-module"):
        parse([f"--config={path}"])
    assert parse([f"--config={path}", "--allow-env-module"]).env == "somebodys_module:Env-v0"


def test_a_config_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        parse(["--config", str(tmp_path / "config.json")])


def test_a_file_may_have_the_names_of_other_libraries_but_no_option_twice(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("n_envs: 4\nn_steps: 7\ntotal-timesteps: 28\n")
    config = parse(["--config", str(path), "--num-steps", "5"])
    assert (config.num_envs, config.num_steps, config.total_transitions) == (4, 5, 28)
    path.write_text("n_envs: 4\nnum_envs: 4\n")
    with pytest.raises(ValueError, match="gives num_envs twice"):
        parse(["--config", str(path)])
