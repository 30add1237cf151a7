"""The numbers that `rlgns bench` prints are consistent; no test depends on how fast anything is."""

import json
import re

import pytest

from rlgns.commands.cli import main

SHORT = ["--seconds=0.2", "--rounds=1", "--num-envs=8", "--num-steps=5"]


def bench(*arguments: object) -> int:
    return main(["bench", "atari", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--game=breakout", "--algo=a2c", "--num-parts=2"], id="a2c on breakout in two parts"),
        pytest.param(
            ["--env=CartPole-v1", "--algo=ppo", "--num-minibatches=2", "--num-epochs=1"], id="ppo on CartPole"
        ),
        pytest.param(["--env=CartPole-v1", "--algo=a2c", "--no-measure"], id="a2c without measuring"),
    ],
)
def test_the_parts_sum_to_the_whole_and_the_bound_follows_from_the_separate_speeds(flags, tmp_path, capsys):
    assert bench(*SHORT, *flags, f"--json={tmp_path / 'bench.json'}") == 0
    figures = json.loads((tmp_path / "bench.json").read_text())
    shares = {name: value for name, value in figures.items() if name.startswith("share of ") and "bound" not in name}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert min(shares.values()) > -0.01
    assert all(shares[f"share of {part}"] > 0 for part in ("emulator", "acting", "update", "logging"))
    assert (shares["share of measuring"] > 0) == ("--no-measure" not in flags)
    alone = [figures[f"{part} alone"] for part in ("emulator", "acting", "update")]
    assert figures["bound"] == pytest.approx(1 / sum(1 / speed for speed in alone))
    assert figures["share of the bound"] == pytest.approx(figures["speed"] / figures["bound"])
    printed = capsys.readouterr().out
    assert re.search(rf"{figures['speed']:,.0f} transitions/s", printed)
    assert f"the loop reaches {figures['share of the bound']:.0%} of that" in printed


@pytest.mark.slow
def test_the_search_prints_the_fastest_tried_configuration_as_a_command(tmp_path, capsys):
    flags = ["--env=CartPole-v1", "--algo=a2c", "--search", "--max-num-envs=16", f"--json={tmp_path / 'bench.json'}"]
    assert bench(*SHORT, *flags) == 0
    tried = json.loads((tmp_path / "bench.json").read_text())["search"]
    sizes = {row["num_envs"]: row["transitions_per_second"] for row in tried[:2]}
    assert sizes.keys() == {8, 16}
    assert f"--num-envs {max(sizes, key=sizes.get)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "atari"),
        (["bench", "atri"], "did you mean atari"),
        (["bench", "atari", "--seconds=0"], "seconds 0 is out of range; give --seconds above 0"),
        (["bench", "atari", "--game=brekout"], "did you mean breakout"),
    ],
)
def test_a_configuration_that_cannot_be_timed_is_refused_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
