"""The commands `rlgns show` and `rlgns plot`: finished, stopped, failed and packed runs, and bad input."""

import json
from pathlib import Path

import pytest
from support.synthetic_runs import damage, moments_of, write_run

from rlgns.commands.cli import main
from rlgns.runs.files import write_json
from rlgns.runs.packing import pack
from rlgns.runs.speeds import THROUGHPUT, Speeds, read_speeds, write_speeds


def make(folder: Path, noise_scale: float = 331, **options: object) -> Path:
    """A run of A2C, 16 × 5, whose noise scale is that of all losses, with 100 measurements."""
    values = {"num_envs": 16, "num_steps": 5, "learning_rate": 7e-4, "goals": {}, "num_records": 100, "budget": 400}
    measured = {loss: moments_of(noise_scale, 80) for loss in ("policy", "value", "total")}
    return write_run(folder, **{**values, "moments": lambda _: measured, **options})


def show(capsys, *arguments: object) -> str:
    assert main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_finished_run_is_shown_from_its_records_alone(tmp_path, capsys):
    out = show(capsys, make(tmp_path / "run"))
    assert out.startswith("Finished: mean return 0.0 after 32,000 transitions, 0:07 min.")
    assert "Your batch, 16 environments × 5 steps = 80 transitions, is small for this task." in out
    assert "--num-envs 64 --num-steps 5" in out
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["policy", "value", "total"]
    assert max(map(len, out.splitlines())) <= 80 + len(str(tmp_path))  # the path may be longer than a line


@pytest.mark.parametrize(
    ("exit_code", "word"), [(None, "Unfinished"), (130, "Stopped"), (143, "Stopped"), (1, "Failed")]
)
def test_how_a_run_ended_is_said(exit_code, word, tmp_path, capsys):
    out = show(capsys, make(tmp_path / "run", exit_code=exit_code))
    assert out.startswith(f"{word}: ")
    assert ("no advice" in out) == (word == "Failed")
    assert ("--num-envs 64" in out) == (word != "Failed")


def test_a_packed_run_is_shown_like_the_run_itself(tmp_path, capsys):
    run = make(tmp_path / "runs" / "one")
    pack([tmp_path / "runs"], tmp_path / "runs.zip", lambda _: None)
    direct, packed = show(capsys, run), show(capsys, tmp_path / "runs.zip")
    assert packed.replace(str(tmp_path / "runs.zip" / "one"), str(run)).split() == direct.split()


def test_numbers_in_json_are_those_of_the_text(tmp_path, capsys):
    out = show(capsys, make(tmp_path / "run"), "--json", tmp_path / "numbers.json")
    (numbers,) = json.loads((tmp_path / "numbers.json").read_text())
    advice = numbers["recommendation"]
    assert (advice["verdict"], advice["count"], advice["length"], advice["size"]) == ("larger", 64, 5, 320)
    assert numbers["noise_scales"]["late"]["total"]["point"] == pytest.approx(331)
    assert f"{advice['updates_ratio'][0]:.1f}" in out
    assert advice["time_ratio"] is None


def test_several_runs_are_shown_and_a_damaged_one_is_left_out_with_one_line(tmp_path, capsys):
    for name in ("a", "b", "c"):
        make(tmp_path / name)
    damage(tmp_path / "b")
    assert main(["show", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("Finished: ") == 2
    assert printed.err.count("note: ") == len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["show", "plot"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which runs? name their directories"),
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "empty holds no run"),
        (["run", "--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert main([command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


# --- speeds


def test_speeds_beside_a_run_are_used_for_the_time_and_for_the_choice(tmp_path, capsys):
    run = make(tmp_path / "run")
    write_speeds(run, Speeds({16: 1300.0, 32: 1800.0, 64: 1500.0}), 5)
    assert "64 × 5 runs at 1,500 transitions/s against 1,300" in show(capsys, run)
    # (80 + 331)/1300 = 0.316, (160 + 331)/1800 = 0.273, (320 + 331)/1500 = 0.434
    out = " ".join(show(capsys, run, "--minimise", "time").split())
    assert "is not the one for the least time here" in out
    assert "--num-envs 32 --num-steps 5" in out
    assert "1.2 times faster" in out
    assert "the one for the fewest transitions" in " ".join(show(capsys, run, "--minimise", "transitions").split())


@pytest.mark.parametrize(
    "content",
    [{"machine": "another"}, {"machine": None, "shapes": 3}, {"shapes": [{"num_envs": "x", "num_steps": 5}]}, {}],
)
def test_speeds_of_another_machine_or_a_damaged_file_are_not_used(content, tmp_path, capsys):
    run = make(tmp_path / "run")
    write_speeds(run, Speeds({16: 1300.0, 64: 1500.0}), 5)
    saved = json.loads((run / THROUGHPUT).read_text())
    assert read_speeds(run, 5) == Speeds({16: 1300.0, 64: 1500.0})
    assert read_speeds(run, 6) is None
    write_json(run / THROUGHPUT, {**saved, **content} if content else [])
    assert read_speeds(run, 5) is None
    assert "--minimise time" in show(capsys, run)


def test_speeds_are_not_written_through_a_link(tmp_path):
    (tmp_path / "other").write_text("kept")
    (tmp_path / THROUGHPUT).symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="is a link"):
        write_speeds(tmp_path, Speeds({16: 1300.0}), 5)
    assert (tmp_path / "other").read_text() == "kept"


def test_time_is_refused_for_a_supervised_run_and_for_a_packed_one(tmp_path, capsys):
    images = {"goal_measure": "eval/train_loss", "unit": "images"}
    make(tmp_path / "runs" / "digits", num_envs=None, num_steps=None, batch_size=64, task="digits", told=images)
    assert main(["show", str(tmp_path / "runs" / "digits"), "--minimise", "time"]) == 2
    assert "needs a run of an agent" in capsys.readouterr().err
    make(tmp_path / "agents" / "one")
    pack([tmp_path / "agents"], tmp_path / "agents.zip", lambda _: None)
    assert main(["show", str(tmp_path / "agents.zip"), "--minimise", "time"]) == 2
    assert "unpack it first" in capsys.readouterr().err


# --- plot


def test_runs_are_drawn_over_one_another(tmp_path, capsys):
    first, second = make(tmp_path / "first"), make(tmp_path / "second", num_envs=64, noise_scale=40)
    out = tmp_path / "both.svg"
    assert main(["plot", str(first), str(second), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"2 runs in {out}\n"
    words = out.read_text()
    for part in ("first, batch 80", "second, batch 320", "mean return", "noise scale of the total loss"):
        assert part in words


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_run_without_measurements_and_one_of_bounds_are_drawn(ending, tmp_path):
    make(tmp_path / "a", moments=None)
    make(tmp_path / "b", moments=lambda _: {"total": moments_of(331, 80, error=9)})
    out = tmp_path / f"noise.{ending}"
    assert main(["plot", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert out.stat().st_size > 1000


def test_runs_that_cannot_share_axes_and_unknown_endings_are_refused(tmp_path, capsys):
    make(tmp_path / "a")
    images = {"goal_measure": "eval/train_loss", "unit": "images"}
    make(tmp_path / "b", num_envs=None, num_steps=None, batch_size=64, task="digits", told=images)
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "draw them in two figures" in capsys.readouterr().err
    assert main(["plot", str(tmp_path / "a"), "--out", str(tmp_path / "x.docx")]) == 2
    assert "does not end in" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))
