"""The answer of a sweep fits a terminal, names what to type and what to run next, and carries its warnings."""

import re
import shlex
from dataclasses import replace

import pytest
from support.synthetic_runs import write_sweep

from rlgns.study.next_runs import values_to_add
from rlgns.study.outcomes import read_outcomes
from rlgns.study.recommendation import choose_batch
from rlgns.study.study import Study, fit_study


def study_of(folder, **options) -> Study:
    goals = options.pop("goals", ())
    write_sweep(folder, noise_scale=None, **options)
    return fit_study(read_outcomes([folder]), goals=goals)


def parts_of(study: Study) -> dict[str, str]:
    return {part.label: " ".join(part.sentences) for part in study.answer.parts}


def following(study: Study) -> dict[str, tuple[float, ...]]:
    choice = choose_batch(study.fits)
    return values_to_add(study.fits, study.outcomes, choice.goal_fit if choice else None)


def test_a_good_sweep_recommends_a_command_with_its_price_and_warns_of_nothing(tmp_path):
    study = study_of(tmp_path, noise=0.03, rates=(0.5, 1, 2))
    answer = study.answer
    assert answer.headline == "Use batches of 64 environments × 10 steps = 640 transitions."
    assert answer.command.startswith("rlgns train atari --num-envs 64 --num-steps 10 --learning-rate 0.000495")
    parts = parts_of(study)
    assert list(parts) == ["Expect", "Because", "Clock"]
    # B_crit 640, from 40 to 640: (1 + 16)/(1 + 1) = 8.5 times fewer updates, (640 + 640)/(40 + 640) = 1.9
    assert re.search(r"against 4 × 10, the smallest tried: 8\.\d \[.*\] times fewer updates, 1\.9 \[", parts["Expect"])
    assert "good confidence" in parts["Because"]
    assert following(study) == {}


def test_lines_fit_80_columns_and_the_command_can_be_pasted(tmp_path):
    study = study_of(tmp_path, noise=0.1, seeds=2, rates=(1, 2))
    lines = study.answer.lines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    pasted = text[text.index("Try") + 3 : text.index("  Expect")].replace("\\\n", " ")
    assert shlex.split(pasted) == shlex.split(study.answer.command)
    for number in re.findall(r"\[[^\]]*$", text, flags=re.MULTILINE):
        pytest.fail(f"an interval is broken: {number}")


def test_few_seeds_and_rates_at_the_edge_are_warnings_and_say_what_to_add(tmp_path):
    """The best multiple of the rate is 1, which is the highest of these, so the next one is 7e-4 × 2 and so on."""
    study = study_of(tmp_path, noise=0.01, seeds=2, rates=(0.25, 0.5, 1))
    parts = parts_of(study)
    assert "the best learning rate is the highest one tried; try higher ones" in parts["Mind"]
    assert "fewer than 3 seeds" in parts["Mind"]
    assert "low confidence" in parts["Because"]
    assert "seed 2" in parts["Next"]
    values = following(study)
    assert values["seed"] == (2,)
    highest = {run.batch_size: run.learning_rate for run in study.outcomes}  # sorted by rate
    assert values["learning_rate"] == tuple(sorted({float(f"{2 * rate:.2g}") for rate in highest.values()}))


def test_a_lower_bound_asks_for_larger_batches(tmp_path):
    study = study_of(tmp_path, noise=0.02, critical_batch_size=1e7, shapes=((4, 10), (8, 10), (16, 10)))
    assert study.answer.headline.endswith("= 160 transitions, or more.")
    assert "no upper bound" in parts_of(study)["Mind"]
    assert following(study)["num_envs"] == (32, 64)


def test_an_upper_bound_asks_for_smaller_batches(tmp_path):
    study = study_of(tmp_path, noise=0.02, critical_batch_size=1, shapes=((256, 10), (512, 10), (1024, 10)))
    assert study.answer.headline.endswith(", or fewer.")
    assert following(study)["num_envs"] == (64, 128)


def test_one_batch_size_gives_no_recommendation_and_names_others(tmp_path):
    study = study_of(tmp_path, noise=0.02, shapes=((16, 5),))
    answer = study.answer
    assert answer.command is None
    assert answer.headline.startswith("No batch size can be recommended yet. At goal 20: B_crit needs runs at 3 batch")
    assert following(study) == {"num_envs": (4, 64, 256)}
    assert "num_envs 4, 64, 256" in parts_of(study)["Next"]
    assert max(map(len, answer.lines())) <= 80


def test_a_goal_that_was_not_reached_asks_for_longer_runs_or_an_easier_goal(tmp_path):
    """Returns rise in a straight line to 5, which every batch size reaches, and end there."""
    levels = {20.0: 10.0, 5.0: 0.05}
    write_sweep(tmp_path, noise_scale=None, noise=0.02, rates=(0.5, 1, 2), budget=150_000, levels=levels)
    for run in tmp_path.glob("*/config.json"):
        run.write_text(run.read_text().replace('"seed":', '"total_transitions": 150000, "seed":'))
    study = fit_study(read_outcomes([tmp_path]), goals=[20.0])
    assert study.answer.command is None
    assert following(study) == {"total_transitions": (300_000,), "goals": (5.0,)}
    parts = parts_of(study)
    assert parts["Next"] == "start a sweep with total_transitions 300,000 or goals 5"
    assert "learning rate" not in parts["Mind"]  # no rate was better than another


def test_a_harder_goal_without_a_fit_is_named_in_the_box(tmp_path):
    study = study_of(tmp_path, noise=0.02, rates=(0.5, 1, 2), budget=150_000, levels={5.0: 0.05, 20.0: 10.0})
    assert study.answer.command
    assert "nothing is known at the harder goal 20" in parts_of(study)["Mind"]


def test_the_mapping_holds_the_answer_in_numbers(tmp_path):
    from rlgns.study.study import as_mapping

    found = as_mapping(study_of(tmp_path, noise=0.03, rates=(0.5, 1, 2)))["recommendation"]
    assert (found["num_envs"], found["num_steps"], found["batch_size"], found["goal"]) == (64, 10, 640, 20.0)
    assert found["certainty"] == "good"
    assert 0 < found["prices"][0]["updates"]["low"] < found["prices"][0]["updates"]["high"] < 1
    assert found["command"].startswith("rlgns train atari")


def test_runs_that_have_made_no_update_yet_give_no_recommendation(tmp_path):
    study = study_of(tmp_path, noise=0.02, shapes=((16, 5),))
    empty = fit_study([replace(run, steps=0, goals={20.0: None}) for run in study.outcomes])
    assert empty.answer.command is None
    assert empty.answer.headline.startswith("No batch size can be recommended yet.")
