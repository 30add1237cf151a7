"""Every number that a study publishes follows from its packed records, and every link of its README leads somewhere."""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlgns.noise.words import in_words
from rlgns.report.comparison_page import STAND_IN_MARK
from rlgns.runs.packed import run_folders
from rlgns.runs.run_report import read_report, report_lines
from rlgns.study.comparison import as_mapping as comparison_as_mapping
from rlgns.study.comparison import comparison_rows, noise_scale_courses
from rlgns.study.estimates import rounded, two_digits
from rlgns.study.games import as_mapping as games_as_mapping
from rlgns.study.games import game_rows, games_curves
from rlgns.study.goal_fits import MISFIT_MARK
from rlgns.study.outcomes import read_outcomes
from rlgns.study.study import Study, as_mapping, fit_study
from rlgns.tasks.config import DEFAULTS, default_options

STUDIES = Path(__file__).parents[2] / "scripts" / "studies"
FITTED = sorted(path.parent.name for path in STUDIES.glob("*/fit.json"))

DIGITS = 1e-10
"""Relative tolerance: machines differ in the last one or two of 16 digits of logarithms and sums."""


def refuse(line):
    raise AssertionError(f"unexpected note: {line}")


def numbers_in(content: Any, place: str = "") -> Iterator[tuple[str, float | None]]:
    """Numbers and nulls of a JSON document with their paths, without texts."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from numbers_in(value, f"{place}/{name}")
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from numbers_in(value, f"{place}/{index}")
    elif not isinstance(content, str):
        yield place, content


def agree(computed: Any, kept: Path, num_least: int) -> None:
    """Assert that the computed numbers are those of the kept file, of which there are `num_least` at least."""
    agree_with(computed, json.loads(kept.read_text()), num_least)


def agree_with(computed: Any, kept: Any, num_least: int, tolerance: float = DIGITS) -> None:
    """Assert that the computed numbers are those that are kept, of which there are `num_least` at least."""
    expected = dict(numbers_in(kept))
    numbers = dict(numbers_in(json.loads(json.dumps(computed))))
    assert len(expected) >= num_least
    known = {place: number for place, number in expected.items() if number is not None}
    assert {place: numbers.get(place, "missing") for place in known} == pytest.approx(known, rel=tolerance)
    assert [place for place in expected.keys() - known.keys() if numbers.get(place) is not None] == []


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@functools.cache
def study(name: str) -> Study:
    return fit_study(read_outcomes([STUDIES / name], refuse), defaults=default_options())


def test_every_study_of_a_sweep_keeps_its_numbers():
    swept = {path.parent.name for path in STUDIES.glob("*/runs.zip")}
    others = {
        "first_look",
        "first_command",
        "choice_of_games",
        "goyal",
        "breakout_ppo_minibatches",
        "breakout_ppo_shapes",
    }
    assert swept == {*FITTED, *others}
    assert len(FITTED) == 13


@pytest.mark.parametrize("name", FITTED)
def test_refitting_the_packed_records_of_a_study_gives_its_published_numbers(name):
    agree(as_mapping(study(name)), STUDIES / name / "fit.json", 100)


def spaced(estimate: Any) -> str:
    """An estimate as READMEs write it, with spaces between thousands."""
    return re.sub(r"(?<=\d),(?=\d{3})", " ", rounded(estimate))


@pytest.mark.parametrize("name", sorted({*FITTED} - {"small_against_large"}))
def test_the_readme_of_a_study_has_the_fitted_numbers_and_marks(name):
    lines = (STUDIES / name / "README.md").read_text().replace("−", "-").splitlines()
    rows = {float(line.split("|")[1]): line for line in lines if re.match(r"\| -?[\d.]+ \|", line)}
    made = study(name)
    for fit in made.fits:
        assert fit.fit, "every goal of these studies has a fit"
        row = rows[fit.goal]
        assert f" {spaced(fit.fit.critical_batch_size)}{fit.mark} |" in row
        prediction = next(p for p in made.predictions if p.goal == fit.goal)
        low = spaced(prediction.whole) if prediction.whole.state == "interval" else two_digits(prediction.whole.low)
        assert low in row


def test_the_main_table_is_that_of_the_comparison():
    readme = (STUDIES.parents[1] / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| [") and "scripts/studies/" in line]
    compared = {name: study(name) for name in FITTED if f"](scripts/studies/{name})" in readme.split("## Results")[1]}
    defaults = {task: vars(config) for task, config in DEFAULTS.items()}
    assert len(rows) == len(compared) == len(FITTED) - 1
    for name, made in compared.items():
        (line,) = (row for row in rows if f"](scripts/studies/{name})" in row)
        row = comparison_rows([made], defaults)[-1]  # an Atari game's second row is in frames, as the paper's
        critical = f"{spaced(row.critical_start)}{MISFIT_MARK * bool(row.misfit_start)}, "
        critical += f"{spaced(row.critical_average)}{MISFIT_MARK * bool(row.misfit)}"
        simple = f"{spaced(row.simple_start)}, {spaced(row.simple_average)}"
        mark = STAND_IN_MARK * bool(row.stands_in_for)
        assert f"](scripts/studies/{name}){mark} | {row.unit} | {critical} | {simple} | {row.num_seeds} |" in line


def test_comparing_the_studies_again_gives_the_published_numbers():
    studies = sorted((study(name) for name in FITTED if name != "small_against_large"), key=lambda made: made.task)
    defaults = {task: vars(config) for task, config in DEFAULTS.items()}
    games = games_as_mapping(game_rows(studies), games_curves(studies))
    computed = comparison_as_mapping(comparison_rows(studies, defaults), noise_scale_courses(studies), games)
    agree(computed, STUDIES / "comparison" / "comparison.json", 400)


def test_the_numbers_of_small_against_large_batches_follow_from_their_records():
    draw = script("small_against_large/draw")
    common, tuned = draw.series_of(read_outcomes([STUDIES / "small_against_large"], refuse))
    computed = {"one rate for all": draw.numbers_of(common), "the best rate of each": draw.numbers_of(tuned)}
    agree(computed, STUDIES / "small_against_large" / "numbers.json", 90)


def test_the_errors_of_scaled_learning_rates_follow_from_their_records():
    draw = script("goyal/draw")
    computed = draw.numbers_of(read_outcomes([STUDIES / "goyal"], refuse), read_outcomes([STUDIES / "mnist"], refuse))
    agree(computed, STUDIES / "goyal" / "numbers.json", 54)


def test_the_costs_of_ppos_minibatches_follow_from_their_records():
    draw = script("breakout_ppo_minibatches/draw")
    folders = [STUDIES / "breakout_ppo_minibatches", STUDIES / "breakout_ppo"]
    computed = draw.numbers_of(read_outcomes(folders, refuse))
    agree(computed, STUDIES / "breakout_ppo_minibatches" / "numbers.json", 90)
    readme = (STUDIES / "breakout_ppo_minibatches" / "README.md").read_text()
    for row in computed["settings"]:
        if row["goal"] == 2.5:
            steps = row["num_epochs"] * row["num_envs"] * 32 // row["minibatch_size"]
            costs = (row["transitions"][0], row["updates"][0], row["optimizer_steps"][0])
            transitions, updates, optimizer_steps = (in_words(cost).replace(",", " ") for cost in costs)
            size = f"{row['minibatch_size']:,}".replace(",", " ")
            cells = (row["num_envs"], size, steps, f"{row['learning_rate']:g}", transitions, updates, optimizer_steps)
            assert f"| {' | '.join(map(str, cells))} |" in readme
    for row in json.loads((STUDIES / "breakout_ppo_minibatches" / "probe.json").read_text()):
        if row.get("update/loss") in ("policy", "total"):
            assert row["update/gain"] + 2 * row["update/gain_error"] < 0  # as the README says
    for name, series in (("size", "of 64 transitions"), ("number", "four of them")):
        first, last = (words.replace(",", " ").replace("  ", ", ") for words in computed["critical"][name].values())
        assert f"| {series} | {first} | {last} |" in readme


def test_the_costs_of_ppos_rollout_shapes_follow_from_their_records():
    draw = script("breakout_ppo_shapes/draw")
    computed = draw.numbers_of(read_outcomes([STUDIES / "breakout_ppo_shapes"], refuse))
    agree(computed, STUDIES / "breakout_ppo_shapes" / "numbers.json", 150)
    readme = (STUDIES / "breakout_ppo_shapes" / "README.md").read_text()
    for effects in computed["effects"].values():
        assert all(f"{e['point']:.2f} [{e['low']:.2f}, {e['high']:.2f}]" in readme for e in effects.values())
    for effects in computed["design_effects"].values():
        assert all(draw.interval(effect) in readme for effect in effects.values())


def test_the_returns_of_games_that_were_tried_follow_from_their_records():
    lines = (STUDIES / "choice_of_games" / "README.md").read_text().splitlines()
    rows = list(script("choice_of_games/table").rows(STUDIES / "choice_of_games" / "runs.zip"))
    assert len(rows) == 11
    assert [line for line in lines if line.startswith("| ")][1:] == rows


def test_returns_and_noise_scales_of_the_first_look_follow_from_its_records():
    draw = script("first_look/draw")
    runs = run_folders(STUDIES / "first_look", refuse)
    computed = {run.name: draw.numbers_of(draw.records_of(run)) for run in runs}
    agree(computed, STUDIES / "first_look" / "numbers.json", 100)


def test_the_numbers_of_the_theory_follow_from_their_records():
    computed = script("theory/draw").numbers()
    fitted = computed.pop("adaptive_mnist")
    kept = json.loads((STUDIES / "theory" / "numbers.json").read_text())
    expected = kept.pop("adaptive_mnist")
    agree_with(computed, kept, 100)
    assert len(fitted) == len(expected) == 3
    for ours, theirs in zip(fitted, expected, strict=True):  # found to a tolerance, and machines round differently
        assert ours["points"] == theirs["points"]
        agree_with(ours["gain"], theirs["gain"], 3, tolerance=1e-3)


def test_what_the_first_command_says_follows_from_its_records():
    (run,) = run_folders(STUDIES / "first_command" / "runs.zip", refuse)
    said = "\n".join(report_lines(read_report(run)))
    for text in (STUDIES / "first_command" / "README.md", STUDIES.parents[1] / "README.md"):
        (box,) = re.findall(r"(Your batch, 16.*?confidence)", text.read_text(), re.DOTALL)
        assert box in said


@pytest.mark.parametrize("readme", sorted(STUDIES.glob("**/README.md")), ids=lambda path: path.parent.name)
def test_every_link_of_a_studys_readme_leads_to_a_file(readme):
    links = re.findall(r"\]\(([^)#:]+)\)", readme.read_text())
    assert links
    assert [link for link in links if not (readme.parent / link).exists()] == []


def test_the_index_names_every_study():
    index = (STUDIES / "README.md").read_text()
    assert [path.parent.name for path in STUDIES.glob("*/*.json") if f"[{path.parent.name}](" not in index] == []


def test_every_kept_file_of_a_study_is_shown_or_has_a_known_role():
    """A study keeps a README, records, numbers, scripts, and the pictures and tables that a README shows."""
    shown = "".join(path.read_text() for path in STUDIES.glob("**/README.md"))
    if not (STUDIES.parents[1] / ".git").exists():
        pytest.skip("which files are kept is known to git alone")
    kept = subprocess.check_output(["git", "ls-files", "."], cwd=STUDIES, text=True).splitlines()
    seen = {"README.md", "runs.zip", "fit.json", "numbers.json"}
    odd = [Path(name) for name in kept if Path(name).name not in seen and Path(name).suffix != ".py"]
    assert [str(path) for path in odd if path.relative_to(path.parts[0]).as_posix() not in shown] == []
