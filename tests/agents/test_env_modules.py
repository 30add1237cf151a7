"""The files of a run never decide what code is imported: only the user can name an environment's module."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import rlgns.agents.cli
from rlgns.agents.options import ALLOW_ENV_MODULE, parse

OPTIONS = {"algo": "a2c", "num_envs": 4, "num_steps": 5, "total_transitions": 100, "wandb": "disabled"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module within reach of imports that leaves a file when it is imported."""
    (tmp_path / "foreign_module.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreign_module", raising=False)
    return tmp_path / "imported"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory that somebody else made; its options would allow themselves what they could."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    options = OPTIONS | {"env": "foreign_module:CartPole-v1", "out": str(folder)}
    (folder / "config.json").write_text(json.dumps({"options": options, "allow_env_module": True}))
    return folder


@pytest.mark.parametrize(
    "env", ["foreign_module:CartPole-v1", "foreign_module:NoFrameskip-v4", ":CartPole-v1", "a:b:c"]
)
def test_a_module_that_a_resumed_run_names_is_not_imported(env, run, module, capsys):
    config = json.loads((run / "config.json").read_text())
    config["options"]["env"] = env
    (run / "config.json").write_text(json.dumps(config))
    assert rlgns.agents.cli.main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run} names the environment '{env}'")
    assert ALLOW_ENV_MODULE in error
    assert error.count("\n") == 1
    assert not module.exists()


def test_a_run_cannot_allow_itself_a_module(run):
    config = json.loads((run / "config.json").read_text())
    config["options"]["allow_env_module"] = True
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="it knows no option allow_env_module"):
        parse(["--resume", str(run)])


@pytest.mark.parametrize(
    "more",
    [[ALLOW_ENV_MODULE], ["--env", "foreign_module:CartPole-v1"], ["--env=foreign_module:CartPole-v1"]],
)
def test_what_the_user_types_is_allowed(more, run):
    assert parse(["--resume", str(run), *more]).env == "foreign_module:CartPole-v1"


def test_a_module_that_the_user_names_in_a_new_run_is_imported(module, tmp_path):
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    out = tmp_path / "new"
    assert rlgns.agents.cli.main([*arguments, "--env=foreign_module:CartPole-v1", f"--out={out}"]) == 0
    assert module.exists()


def test_a_module_that_cannot_be_imported_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_module.py").write_text("from math import no_such_thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    assert rlgns.agents.cli.main([*arguments, "--env=broken_module:X-v0", f"--out={tmp_path / 'new'}"]) == 2
    assert "error: environment 'broken_module:X-v0' cannot be imported: cannot import" in capsys.readouterr().err
