"""Any command line and any file lead to exit code 0, 1 or 2, at most one line of error, and never a traceback."""

import contextlib
import io
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.synthetic_runs import growing_moments, write_run

from rlgns.agents.config import TrainConfig
from rlgns.agents.options import parse as parse_atari
from rlgns.commands.cli import main
from rlgns.runs.checkpoints import load_checkpoint, save_checkpoint
from rlgns.runs.exit_codes import exit_code_of
from rlgns.tasks.config import DEFAULTS, SupervisedConfig
from rlgns.tasks.options import parse as parse_supervised
from rlgns.tasks.quadratic import QuadraticConfig

ODD_TEXTS = st.sampled_from([
    "", " ", "0", "-1", "-0.0", "1.5", "1e3", "8x", "x8", "1e999", "-1e999", "inf", "nan", "True", "None", "[1]", "[",
    "\0", "a\nb", "\x1b[31m", "\ud800", "é漢", "１２", "9" * 5000, "a" * 5000, "99999999999999999999", "-", "../x",
    "/dev/null",
])  # fmt: skip
TEXTS = ODD_TEXTS | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXTS
VALUES = st.recursive(PLAIN, lambda of: st.lists(of, max_size=3) | st.dictionaries(TEXTS, of, max_size=3), max_leaves=5)


def bounded(examples: int):
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def ends_in_one_line(work: Callable[[], object]) -> int:
    """Run a command and check what its user sees."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = exit_code_of(lambda: work() and 0)
        except SystemExit as end:  # --help
            code = end.code
    lines = [line for line in errors.getvalue().split("\n") if line and not line.startswith("note: ")]
    assert code in {0, 1, 2}
    assert len(lines) <= 1, lines
    assert not code or lines[0].startswith("error: ")
    assert all(len(line) < 2000 for line in lines)
    return code


def flags_of(*kinds: type) -> st.SearchStrategy[list[str]]:
    names = sorted({field.name for kind in kinds for field in fields(kind)} | {"help-me", "no-measure", "wandb"})
    names = [name for name in names if name not in {"resume", "out"}]
    one = st.builds(lambda name, value: [f"--{name.replace('_', '-')}", value], st.sampled_from(names), TEXTS)
    together = one.map("=".join).map(lambda word: [word])
    return st.lists(one | together | TEXTS.map(lambda word: [word]), min_size=1, max_size=4).map(
        lambda parts: [*itertools.chain(*parts)]
    )


@bounded(150)
@given(flags_of(TrainConfig))
def test_any_flags_of_the_main_job(arguments):
    ends_in_one_line(lambda: parse_atari(arguments))


@bounded(150)
@given(st.sampled_from(sorted(DEFAULTS)), flags_of(SupervisedConfig))
def test_any_flags_of_the_supervised_tasks(task, arguments):
    ends_in_one_line(lambda: parse_supervised(task, arguments))


@bounded(60)
@given(
    st.sampled_from(["fit", "report", "compare", "sweep", "demo", "train", "bench", "trian"]),
    st.lists(TEXTS, max_size=3),
)
def test_any_words_after_a_command(tmp_path_factory, command, words):
    nowhere = tmp_path_factory.getbasetemp() / "nowhere"
    code = ends_in_one_line(lambda: main([command, str(nowhere), *words]) or True)
    assert code == 0  # the exit code of the inner command, which has printed its own line


@bounded(100)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(TrainConfig)]) | TEXTS, VALUES, max_size=4))
def test_any_options_in_a_yaml_file(tmp_path, options):
    file = tmp_path / "run.yaml"
    file.write_bytes(json.dumps(options).encode("utf-8", "replace"))  # JSON is YAML
    ends_in_one_line(lambda: parse_atari(["--config", str(file)]))


@bounded(100)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_as_a_yaml_file(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    ends_in_one_line(lambda: parse_atari(["--config", str(file)]))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, num_envs in (("good", 8), ("bad", 16)):
        write_run(
            folder / name, num_envs=num_envs, num_steps=5, learning_rate=1e-3, goals={5.0: 20, 20.0: None}, budget=40,
            num_records=4, moments=growing_moments(900, num_envs * 5),
        )  # fmt: skip
    return folder


FILES = ("config.json", "metrics.jsonl", "summary.json")


def keys_of(run: Path, file: str) -> list[str]:
    content = json.loads(
        (run / file).read_text().splitlines()[-1] if file == "metrics.jsonl" else (run / file).read_text()
    )
    return sorted({*content, *content.get("options", {})})


@bounded(60)
@given(st.sampled_from(FILES), st.randoms(use_true_random=False), VALUES | st.just(10**400) | st.just(float("inf")))
def test_any_value_in_a_runs_files_leaves_the_other_run_to_fit(two_runs, tmp_path, file, random, value):
    shutil.copytree(two_runs, tmp_path / "runs", dirs_exist_ok=True)
    bad = tmp_path / "runs" / "bad" / file
    key = random.choice(keys_of(two_runs / "bad", file))
    *before, last = bad.read_text().splitlines() if file == "metrics.jsonl" else [bad.read_text()]
    content = json.loads(last)
    holder = content["options"] if key in content.get("options", {}) else content
    holder[key] = value
    bad.write_text("\n".join([*before, json.dumps(content)]))
    assert ends_in_one_line(lambda: main(["fit", str(tmp_path / "runs")]) or True) == 0


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        "{",
        '"x"',
        "[" * 100_000,
        '{"a":' * 100_000,
        "1e999",
        "9" * 5000,
        '{"exit_code": NaN}',
        "\0\0",
        "\ufeff{}",
    ],
    ids=range(12),
)
def test_any_text_as_a_runs_file_leaves_the_other_run_to_fit(two_runs, tmp_path, capsys, file, content):
    shutil.copytree(two_runs, tmp_path / "runs")
    (tmp_path / "runs" / "bad" / file).write_text(content)
    assert main(["fit", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    assert ": 1 run\n" in out or file == "metrics.jsonl"
    assert all(line.startswith("note: ") and str(tmp_path) in line for line in err.splitlines())
    assert err or not content  # a run that has just begun has an empty records file


@bounded(60)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_any_damage_to_a_checkpoint(tmp_path, where, damage):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"num_updates": 3, "losses": [0.5, 2.0]})
    content = bytearray(path.read_bytes())
    content[where % len(content) : where % len(content) + len(damage)] = damage
    path.write_bytes(content)
    ends_in_one_line(lambda: load_checkpoint(path))


def test_options_of_quadratic_are_all_bounded():
    for name in (field.name for field in fields(QuadraticConfig)):
        assert ends_in_one_line(lambda name=name: main(["train", "quadratic", f"--{name}=nan\0"]) or True) == 0
