"""The runs of a W&B sweep file, in order, and their commands, which are those of W&B's agent."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlgns.sweeps.spec import Result, RunSpec, Sweep

ROOT = Path(__file__).parents[2]

DEMOS = [ROOT / f"rlgns/commands/demos/{name}.yaml" for name in ("cartpole", "quadratic")]
FILES = [*sorted((ROOT / "scripts/sweeps").glob("*.yaml")), *DEMOS]


def sweep_of(folder: Path, **config: Any) -> Sweep:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "program": "train.py", **config}, sort_keys=False))
    return Sweep(path)


def refusal(folder: Path, **config: Any) -> str:
    with pytest.raises(ValueError, match=r"sweep\.yaml") as error:
        sweep_of(folder, **config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_programs_know_the_flags_of_the_sweep_files_in_this_repository(path):
    sweep = Sweep(path)
    runs = sweep.grid()
    sweep.check_flags(runs[0])
    assert len({run.name for run in runs}) == len(runs)
    sizes = {run.batch_size for run in runs}
    assert len(sizes) >= 5
    assert max(sizes) >= 32 * min(sizes)
    if "goals" in runs[0].parameters:  # B_crit needs tuned rates; a study of rules for the rate varies the rules
        assert len({run.parameters["learning_rate"] for run in runs}) >= 2
    assert len({run.parameters["seed"] for run in runs}) >= 2


@pytest.mark.parametrize("path", sorted(FILES[0].parent.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_programs_know_the_flags_of_the_sweeps_of_the_theory_and_of_ppo(path):
    sweep = Sweep(path)
    runs = sweep.grid()
    sweep.check_flags(runs[0])
    assert len({run.name for run in runs}) == len(runs)
    assert len({run.parameters["seed"] for run in runs}) >= 2
    assert re.search(rf"scripts/sweeps/{path.parent.name}/{path.stem}.yaml --out runs/\w+", path.read_text())


def test_a_grid_is_every_combination_once_by_seed_and_with_the_middle_rate_first(tmp_path):
    sweep = sweep_of(
        tmp_path,
        parameters={
            "num_envs": {"values": [16, 4]},
            "learning_rate": {"values": [0.1, 0.2, 0.4]},
            "seed": {"values": [0, 1]},
            "game": {"value": "pong"},
        },
    )
    runs = sweep.grid()
    assert len({json.dumps(dict(run.parameters), sort_keys=True) for run in runs}) == len(runs) == 12
    assert [run.parameters["seed"] for run in runs] == [0] * 6 + [1] * 6
    assert [run.parameters["learning_rate"] for run in runs[:6]] == [0.2, 0.2, 0.1, 0.4, 0.1, 0.4]
    assert [run.parameters["num_envs"] for run in runs[:2]] == [16, 4]
    assert {run.parameters["game"] for run in runs} == {"pong"}
    assert runs[0].name == "num_envs=16,learning_rate=0.2,seed=0"


@pytest.mark.parametrize("rates", [[0.0014, 0.0028, 0.0007], ["14e-4", 0.0007, 0.0028]])
def test_the_middle_rate_is_that_by_size_however_the_file_lists_them(tmp_path, rates):
    runs = sweep_of(tmp_path, parameters={"learning_rate": {"values": rates}}).grid()
    assert float(runs[0].parameters["learning_rate"]) == 0.0014


def test_a_value_given_twice_is_one_run(tmp_path):
    assert len(sweep_of(tmp_path, parameters={"seed": {"values": [1, 1, 2]}}).grid()) == 2


@pytest.mark.parametrize(
    ("parameters", "batch_size"),
    [({"num_envs": 16, "num_steps": 5}, 80), ({"batch_size": 64}, 64), ({"seed": 1}, None), ({"num_envs": 4}, None)],
)
def test_the_batch_size_is_known_if_the_parameters_determine_it(parameters, batch_size):
    assert RunSpec("run", parameters).batch_size == batch_size


def test_names_can_name_directories(tmp_path):
    (run,) = sweep_of(tmp_path, parameters={"game": {"values": ["a/b c", "a/b c"]}}).grid()
    assert run.name == "game=a-b-c"


def test_macros_of_the_command_are_expanded_as_by_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCH", "srun")
    words = ["${env}", "${envvar:LAUNCH}", "${interpreter}", "-u", "${program}", "--", "${args}"]
    sweep = sweep_of(tmp_path, parameters={"a": {"value": 1}}, command=words)
    assert sweep.command(RunSpec("", {"a": 1, "b": True})) == [
        "srun", sys.executable, "-u", "train.py", "--", "--a=1", "--b=True",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("macro", "words"),
    [
        ("${args_no_hyphens}", ["a=1", "b=True", "c=False"]),
        ("${args_no_boolean_flags}", ["--a=1", "--b"]),
        ("${args_json}", ['{"a": 1, "b": true, "c": false}']),
    ],
)
def test_every_form_of_the_arguments(macro, words, tmp_path):
    sweep = sweep_of(tmp_path, parameters={"a": {"value": 1}}, command=["python", macro])
    assert sweep.command(RunSpec("", {"a": 1, "b": True, "c": False})) == ["python", *words]


def test_the_default_command_is_that_of_wandb(tmp_path):
    sweep = sweep_of(tmp_path, parameters={"a": {"value": 1}})
    assert sweep.command(RunSpec("", {"a": 1})) == [sys.executable, "train.py", "--a=1"]


# --- what is refused before anything starts


def test_a_misspelt_key_is_reported_with_the_nearest_known_key(tmp_path):
    message = refusal(tmp_path, parameters={"a": {"value": 1}}, comand=["python"])
    assert "'comand' was unexpected" in message
    assert "did you mean command?" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "gird", "parameters": {"a": {"value": 1}}}, "gird"),
        ({"method": "grid"}, "parameters"),
        ({"parameters": {"a": {"values": []}}}, "a"),
        ({"parameters": {"a": {"value": 1}}, "run_cap": 0}, "run_cap 0"),
        ({"parameters": {"a": 3}}, "NAME: {values: [..]}"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "values: of a"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "nested"),
        ({"parameters": {"a": {"value": 1}}, "command": ["python", "${nonsense}"]}, "${nonsense}"),
        ({"parameters": {"a": {"value": 1}}, "command": ["${program}"], "program": ""}, "${program}"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_in_one_line(config, message, tmp_path):
    assert message in refusal(tmp_path, **config)


def test_a_file_that_is_missing_or_not_yaml_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml"):
        Sweep(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        Sweep(tmp_path / "bad.yaml")


def test_a_flag_that_the_program_does_not_know_is_refused_with_the_nearest(tmp_path):
    command = ["${interpreter}", "-m", "rlgns", "train", "quadratic", "${args}"]
    sweep = sweep_of(tmp_path, parameters={"bach_size": {"values": [8, 16]}}, command=command)
    with pytest.raises(ValueError, match="no flag --bach-size; did you mean batch_size"):
        sweep.check_flags(sweep.grid()[0])


def test_a_missing_program_is_refused(tmp_path):
    sweep = sweep_of(tmp_path, parameters={"a": {"value": 1}}, command=["no-such-program", "${args}"])
    with pytest.raises(ValueError, match="no-such-program cannot be run"):
        sweep.check_flags(sweep.grid()[0])


# --- searches


def test_a_random_search_draws_within_its_limits_until_it_is_stopped(tmp_path):
    sweep = sweep_of(
        tmp_path,
        method="random",
        parameters={
            "learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
            "batch_size": {"values": [8, 16]},
        },
    )
    runs = [sweep.next([]) for _ in range(20)]
    assert all(1e-4 <= run.parameters["learning_rate"] <= 1e-1 for run in runs)
    assert {run.parameters["batch_size"] for run in runs} == {8, 16}
    assert all(type(value) in {int, float} for run in runs for value in run.parameters.values())
    assert len({run.name for run in runs}) == 20


@pytest.mark.parametrize("best", [2, 8])
def test_a_bayesian_search_proposes_values_near_the_best_metric(best, tmp_path):
    sweep = sweep_of(
        tmp_path,
        method="bayes",
        metric={"name": "loss", "goal": "minimize"},
        parameters={"x": {"distribution": "uniform", "min": 0.0, "max": 10.0}},
    )
    results = [Result(RunSpec(f"x={x}", {"x": x}), finished=True, metric=(x - best) ** 2) for x in range(11)]
    np.random.seed(0)  # noqa: NPY002 - the package draws from it
    proposed = [sweep.next(results).parameters["x"] for _ in range(20)]
    assert sum(abs(x - best) < 1.5 for x in proposed) >= 10  # by chance 6
