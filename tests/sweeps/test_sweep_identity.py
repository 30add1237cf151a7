"""Runs of a sweep are distinguished by their parameters, and a directory holds a single sweep."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlgns.commands.cli import main
from rlgns.sweeps.naming import MAX_BYTES, canonical, unique_names
from rlgns.sweeps.spec import Result, Sweep

WRITER = """
import json, pathlib, sys
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
out = pathlib.Path(flags.pop("out"))
out.mkdir(exist_ok=True)
(out / "config.json").write_text(json.dumps({"options": {name: json.loads(value) for name, value in flags.items()}}))
(out / "summary.json").write_text('{"exit_code": 0}')
"""
"""A program that trains nothing and writes its options to config.json, as a run does."""


def sweep_of(folder: Path, parameters: dict[str, Any], **config: Any) -> Sweep:
    (folder / "writer.py").write_text(WRITER)
    content = {"method": "grid", "command": ["${interpreter}", "-S", str(folder / "writer.py"), "${args}"], **config}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**content, "parameters": parameters}, sort_keys=False))
    return Sweep(folder / "sweep.yaml")


def launch(folder: Path, *flags: str) -> int:
    return main(["sweep", str(folder / "sweep.yaml"), f"--out={folder / 'out'}", "--workers=2", *flags])


def runs(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text())["options"] for path in folder.glob("out/*/config.json")}


LONG = {f"a_parameter_with_a_long_name_{i}": {"values": [0, 1]} for i in range(10)}


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        ({"learning_rate": {"values": [0.1234567, 0.1234568, 0.2]}}, 3),
        ({"game": {"values": ["a b", "a-b", "a_b"]}}, 3),
        ({"game": {"values": ["Pong", "pong"]}}, 2),  # one directory on a file system that ignores case
        ({"x": {"values": [1, "1", True, "True", None, "None"]}}, 6),
        ({"goals": {"values": [[1, 2], "1 2", [12]]}}, 3),
        ({"a": {"values": ["x", "x,b=y"]}, "b": {"values": ["y", "y,b=y"]}}, 4),
        ({"name": {"values": ["ü" * 150, "ü" * 151]}}, 2),
        ({"x": {"values": [1, 1.0, 2]}}, 2),
        (LONG, 1024),
    ],
)
def test_every_point_of_a_grid_has_a_directory_of_its_own(parameters, size, tmp_path):
    grid = sweep_of(tmp_path, parameters).grid()
    names = {spec.name.casefold() for spec in grid}
    assert len(grid) == len(names) == size
    assert all(len(name.encode()) <= MAX_BYTES for name in names)
    assert grid == sweep_of(tmp_path, parameters).grid()


def test_only_names_that_would_coincide_carry_a_hash(tmp_path):
    first, second, third = sorted(
        spec.name for spec in sweep_of(tmp_path, {"learning_rate": {"values": [0.2, 0.1234567, 0.1234568]}}).grid()
    )
    assert first.startswith("learning_rate=0.123457-")
    assert second.startswith("learning_rate=0.123457-")
    assert third == "learning_rate=0.2"


def test_a_known_name_is_kept_and_no_other_run_gets_it():
    names = unique_names([("a", "x"), ("b", "X"), ("c", "y")], known={"a": "y"})
    assert names["a"] == "y"
    assert names["b"].startswith("X-")
    assert names["c"].startswith("y-")


@pytest.mark.parametrize("value, other", [(1, 1.0), ([1.0], [1]), ({"a": 1, "b": 2}, {"b": 2, "a": 1})])
def test_equal_values_have_the_same_canonical_text(value, other):
    assert canonical(value) == canonical(other)


@pytest.mark.parametrize("value, other", [(1, True), (1, "1"), (None, "None"), (0.1, 0.1 + 1e-16), ([1], 1)])
def test_different_values_have_different_canonical_texts(value, other):
    assert canonical(value) != canonical(other)


def test_points_whose_short_names_coincide_are_all_run(tmp_path, capsys):
    sweep_of(tmp_path, {"learning_rate": {"values": [0.1234567, 0.1234568]}, "gamma": {"value": 1}})
    assert launch(tmp_path) == 0
    assert "2 finished" in capsys.readouterr().out
    assert sorted(options["learning_rate"] for options in runs(tmp_path).values()) == [0.1234567, 0.1234568]


def test_a_sweep_that_grows_keeps_its_runs_under_their_names(tmp_path, capsys):
    sweep_of(tmp_path, {"learning_rate": {"value": 0.1}, "seed": {"values": [0, 1]}, "wandb": {"value": 0}})
    assert launch(tmp_path) == 0
    assert set(runs(tmp_path)) == {"seed=0", "seed=1"}
    grown = {"learning_rate": {"values": [0.1, 0.2]}, "seed": {"values": [0, 1, 2]}, "wandb": {"value": 1}}
    sweep_of(tmp_path, grown)
    assert launch(tmp_path) == 0
    assert "6 finished" in capsys.readouterr().out
    assert len(runs(tmp_path)) == 6
    assert runs(tmp_path)["seed=0"] == {"learning_rate": 0.1, "seed": 0, "wandb": 0}  # not run again


def test_finished_runs_under_names_of_an_earlier_version_are_recognised(tmp_path, capsys):
    """The journal of that version does not hold the parameters of the runs."""
    sweep_of(tmp_path, {"learning_rate": {"values": [0.1, 0.25]}, "goals": {"values": [[1, 2], [3]]}})
    out = tmp_path / "out"
    for rate in (0.1, 0.25):
        for goals, words in (([1, 2], "-1,-2-"), ([3], "-3-")):
            run = out / f"learning_rate={rate},goals={words}"
            run.mkdir(parents=True)
            (run / "config.json").write_text(json.dumps({"options": {"learning_rate": rate, "goals": goals}}))
            (run / "summary.json").write_text('{"exit_code": 0}')
    (out / "sweep.yaml").write_text((tmp_path / "sweep.yaml").read_text())
    assert launch(tmp_path) == 0
    assert "4 finished" in capsys.readouterr().out
    assert not list((out / "logs").iterdir())  # nothing was started


def test_an_earlier_name_shared_by_two_runs_is_kept_by_the_run_that_made_it(tmp_path, capsys):
    sweep_of(tmp_path, {"learning_rate": {"values": [0.1234567, 0.1234568]}})
    run = tmp_path / "out/learning_rate=0.123457"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"options": {"learning_rate": 0.1234568}}')
    (run / "summary.json").write_text('{"exit_code": 0}')
    assert launch(tmp_path) == 0
    assert "2 finished" in capsys.readouterr().out
    made = runs(tmp_path)
    assert made.pop("learning_rate=0.123457") == {"learning_rate": 0.1234568}
    assert list(made.values()) == [{"learning_rate": 0.1234567}]


FIXED = {"gamma": {"value": 0.99}, "seed": {"values": [0, 1]}}


@pytest.mark.parametrize(
    ("parameters", "config", "message"),
    [
        ({**FIXED, "gamma": {"value": 0.5}}, {}, "gamma is 0.5 now and was 0.99"),
        ({**FIXED, "gamma": {"values": [0.5, 0.9]}}, {}, "gamma is [0.5, 0.9] now and was 0.99"),
        ({**FIXED, "steps": {"value": 1}}, {}, "steps is new"),
        ({"seed": {"values": [0, 1]}}, {}, "gamma is gone"),
        (FIXED, {"command": ["true", "${args}"]}, "command is ['true', '${args}'] now and was"),
        (FIXED, {"program": "other.py"}, "program is other.py now"),
        (FIXED, {"method": "random"}, "method is random now and was grid"),
    ],
)
def test_a_directory_of_another_sweep_is_refused_with_what_differs(parameters, config, message, tmp_path, capsys):
    sweep_of(tmp_path, FIXED)
    assert launch(tmp_path) == 0
    before = (tmp_path / "out/sweep.yaml").read_text()
    sweep_of(tmp_path, parameters, **config)
    for flags in ([], ["--dry-run"], ["--shard=1/2"] if config.get("method") is None else []):
        capsys.readouterr()
        assert launch(tmp_path, *flags) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "choose another --out" in error
        assert error.count("\n") == 1
    assert (tmp_path / "out/sweep.yaml").read_text() == before


def test_without_a_copy_of_the_sweep_file_the_options_of_the_runs_are_compared(tmp_path, capsys):
    sweep_of(tmp_path, FIXED)
    assert launch(tmp_path) == 0
    for path in [*(tmp_path / "out").glob("sweep*"), tmp_path / "out/seed=1/summary.json"]:
        path.unlink()  # as after copying the runs, or an interruption
    sweep_of(tmp_path, {**FIXED, "gamma": {"value": 0.5}})
    assert launch(tmp_path) == 2
    assert "gamma is 0.5 now and was 0.99 (run seed=" in capsys.readouterr().err
    sweep_of(tmp_path, FIXED)
    assert launch(tmp_path) == 0
    assert "2 finished" in capsys.readouterr().out


def test_a_sweep_without_any_results_may_be_corrected(tmp_path):
    """All its runs were refused, so that no results could be mixed."""
    sweep_of(tmp_path, {**FIXED, "gamma": {"value": "word"}})  # the writer fails on it
    assert launch(tmp_path, "--retries=0") == 1
    sweep_of(tmp_path, FIXED)
    assert launch(tmp_path, "--retries=1") == 0


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_makes_as_many_different_runs_as_its_cap_allows(method, tmp_path):
    sweep = sweep_of(
        tmp_path,
        {"x": {"values": [1, 2, 3, 4]}, "y": {"min": 0, "max": 1}, "z": {"value": 7}},
        method=method,
        metric={"name": "loss", "goal": "minimize"},
    )
    results: list[Result] = []
    while (spec := sweep.next(results)) is not None:
        results.append(Result(spec, finished=True, metric=float(spec.parameters["x"])))
    assert {(spec.parameters["x"], spec.parameters["y"]) for spec, _, _ in map(_parts, results)} == {
        (x, y) for x in (1, 2, 3, 4) for y in (0, 1)
    }
    assert len({result.spec.name for result in results}) == len(results) == 8


def _parts(result: Result) -> tuple[Any, bool, float | None]:
    return result.spec, result.finished, result.metric


def test_a_search_never_proposes_a_value_of_probability_zero(tmp_path):
    sweep = sweep_of(tmp_path, {"x": {"values": [1, 2], "probabilities": [1, 0]}}, method="random")
    only = sweep.next([])
    assert only.parameters == {"x": 1}
    assert sweep.next([Result(only, finished=True, metric=None)]) is None


def test_a_random_search_of_four_values_makes_four_runs_and_reports_that_there_are_no_more(tmp_path, capsys):
    sweep_of(tmp_path, {"x": {"values": [1, 2, 3, 4]}}, method="random", run_cap=9)
    assert launch(tmp_path) == 0
    printed = capsys.readouterr()
    assert "4 finished" in printed.out
    assert "the search has proposed all 4 runs that it can" in printed.err
