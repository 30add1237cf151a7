"""Whole runs of two ranks on the CPU: their records, and their end when they are stopped or killed.

The truth is one process with the same flags: it plays in the same environments and draws the same actions, so that the
records differ by rounding alone.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from support import whole_runs
from support.tolerances import MIXED_SIGNS, assert_equal_to_rounding, one_count, rounded, rounding
from support.whole_runs import FORKS, SCRIPT, TIMEOUT, Ended, Started, environment, run, wait_until
from test_parallel import free_port

from rlgns.noise.moment_records import measurement_from_record
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.step_size import steps_from_record
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.directory import read_config
from rlgns.runs.records import Record, read_lines, read_records

COMMON = (
    "--num-envs", "8", "--num-groups", "8", "--num-threads", "1", "--num-torch-threads", "1", "--device", "cpu",
    "--design-effect-every", "0", "--wandb", "disabled",
)  # fmt: skip
A2C = (*COMMON, "--num-steps", "5", "--measure-every", "5")
PPO = (
    *COMMON, "--algo", "ppo", "--num-steps", "16", "--num-minibatches", "2", "--num-epochs", "2",
    "--no-anneal-clip-coef",  # no ratio comes near the edge of the range, where rounding decides what is trained on
)  # fmt: skip
CARTPOLE = ("--env", "CartPole-v1", *A2C)

# --- ranks as processes -----------------------------------------------------------------------------------------------


def start_step(folder: Path, *arguments: str, size: int = 2) -> list[Started]:
    """Start one process per rank as srun does; each works in a folder of its own, `rank0` and so on."""
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": str(size), "MASTER_ADDR": "127.0.0.1"}
    step["MASTER_PORT"] = str(free_port())
    started = []
    for rank in range(size):
        own = folder / f"rank{rank}"
        own.mkdir()
        variables = {**environment(own), **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        process = FORKS.Process(target=whole_runs._run_script, args=(arguments, variables, own))
        process.start()
        started.append(Started(process, own))
    return started


def run_step(folder: Path, *arguments: str) -> list[Ended]:
    return [rank.end() for rank in start_step(folder, *arguments)]


def torchrun(folder: Path, *arguments: str, max_restarts: int = 0) -> "subprocess.Popen[str]":
    """Run two ranks in separate interpreters that work in `folder`."""
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={max_restarts}"]
    return subprocess.Popen(
        [sys.executable, *agent, str(SCRIPT), *arguments],
        cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(agent: "subprocess.Popen[str]") -> Ended:
    try:
        out, err = agent.communicate(timeout=TIMEOUT)
    finally:
        agent.kill()
    return Ended(agent.returncode, out, err)


def ranks_of(agent: "subprocess.Popen[str]") -> list[int]:
    """The process ids of the ranks that torchrun started."""
    found = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True, check=True)
    return sorted(int(pid) for pid in found.stdout.split())


# --- what is recorded -------------------------------------------------------------------------------------------------


def steps_of(run_dir: Path) -> list[object]:
    return [record["progress/steps"] for record in read_records(run_dir / "metrics.jsonl")]


def has_records(run_dir: Path, count: int) -> bool:
    path = run_dir / "metrics.jsonl"
    return path.exists() and len(read_lines(path)[0]) >= count


def has_checkpoint(run_dir: Path) -> bool:
    """Whether an update has been saved."""
    return load_checkpoint(run_dir / "checkpoint.pt")["num_updates"] > 0


def assert_alike(run_dir: Path, other: Path) -> None:
    """Check that records, except for speeds, and parameters are equal up to rounding.

    The fraction of ratios beyond the clipping range is a count: a single ratio may fall on the other side of the edge.
    """
    states = [load_checkpoint(path / "checkpoint.pt") for path in (run_dir, other)]
    steps = states[1]["num_optimizer_steps"]
    one_ratio = one_count(read_config(other)["batch_size"])
    records, others = (read_records(path / "metrics.jsonl") for path in (run_dir, other))
    assert len(records) == len(others)
    for record, expected in zip(records, others, strict=True):
        assert record.keys() == expected.keys()
        assert part(record, "progress/", "rollout/episodes") == part(expected, "progress/", "rollout/episodes")
        for prefix in ("train/", "rollout/"):
            found, its = numbers(record, prefix), numbers(expected, prefix)
            clipped = [values.pop("train/clip_fraction", 0.0) for values in (found, its)]
            assert clipped[0] == pytest.approx(clipped[1], abs=one_ratio * (1 + rounding(torch.float64)))
            assert found == rounded(its, updates=steps, factor=MIXED_SIGNS, scale=1.0)
        moments, expected_moments = measurement_from_record(record), measurement_from_record(expected)
        assert moments.keys() == expected_moments.keys()
        for name, own in moments.items():
            assert_moments_alike(own, expected_moments[name], steps)
        step_sums, expected_sums = steps_from_record(record), steps_from_record(expected)
        assert (step_sums is None) == (expected_sums is None)
        if step_sums and expected_sums:
            assert step_sums.count == expected_sums.count
            same = rounded(expected_sums.product, updates=steps, factor=MIXED_SIGNS, scale=abs(expected_sums.slope))
            assert step_sums.product == same
    policy, expected_policy = (state["policy"] for state in states)
    assert policy.keys() == expected_policy.keys()
    # a bias is a sum of steps along gradients, means over transitions whose advantages have either sign
    pair = list(policy.values()), list(expected_policy.values())
    assert_equal_to_rounding(*pair, updates=steps, factor=MIXED_SIGNS)


def part(record: Record, *prefixes: str) -> Record:
    return {key: value for key, value in record.items() if key.startswith(prefixes)}


def numbers(record: Record, prefix: str) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in part(record, prefix).items()}


def assert_moments_alike(moments: Moments, expected: Moments, steps: int) -> None:
    """Check equality up to rounding; differences near zero are compared on the scale of their terms."""
    own, other = PooledMoments.of(moments), PooledMoments.of(expected)
    n, trace = other.count, other.trace_covariance
    sq_norm = abs(other.sq_norm) + trace * n / other.batch_size  # |G|² is a difference of squared norms of this size
    ratio = sq_norm / trace * n if trace > 0 else 0.0
    scales = {
        "sq_norm": sq_norm,
        "sq_norm_square": sq_norm**2,
        "cross": sq_norm * trace,
        "sq_norm_variance": sq_norm**2,
        "trace_variance": trace**2,
        "covariance": sq_norm * trace,
        "sq_norm_unbiased_variance": sq_norm**2,
        "trace_unbiased_variance": trace**2,
        "unbiased_covariance": sq_norm * trace,
        "relative_sq_norm": ratio,
        "relative_sq_norm_square": ratio**2,
        "relative_trace": n,
        "relative_cross": ratio * n,
        "relative_sq_norm_variance": ratio**2,
        "relative_trace_variance": n,
        "relative_covariance": ratio * n,
    }
    for name in (f.name for f in fields(PooledMoments)):
        same = rounded(getattr(other, name), updates=steps, factor=4 * MIXED_SIGNS, scale=scales.get(name, 0.0))
        assert getattr(own, name) == same, name  # squares of squared norms: factor 4


# --- two ranks against one process ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def under_torchrun(tmp_path_factory) -> tuple[Path, Ended]:
    """A2C on Skiing by two ranks, in a run directory of its own choice, beside that of one process.

    Every step of Skiing has a reward: on a game without any for long, what is learnt is rounding. And after ten updates
    no rounding has grown yet: training is chaotic, and after thirty it differs by one in a hundred.
    """
    folder = tmp_path_factory.mktemp("torchrun")
    arguments = ("--game", "skiing", *A2C, "--total-transitions", "400", "--log-every", "1")
    agent = torchrun(folder, *arguments)
    alone = run(folder, *arguments, "--out", "alone")
    assert alone.exit_code == 0, alone.err
    return folder, end(agent)


@pytest.mark.slow
def test_two_ranks_of_torchrun_record_what_one_process_records(under_torchrun):
    folder, ended = under_torchrun
    assert ended.exit_code == 0, ended.err
    (run_dir,) = (folder / "runs").iterdir()
    assert_alike(run_dir, folder / "alone")
    assert steps_of(run_dir) == list(range(1, 11))


@pytest.mark.slow
def test_two_ranks_leave_one_run_directory_and_one_summary(under_torchrun):
    folder, ended = under_torchrun
    (run_dir,) = (folder / "runs").iterdir()
    assert {path.name for path in run_dir.iterdir()} == {path.name for path in (folder / "alone").iterdir()}
    assert [path.parent.name for path in folder.rglob("metrics.jsonl")].count(run_dir.name) == 1
    assert ended.out.count("Details by loss: rlgns show") == 1
    assert " ".join(ended.out.split()).count("8 environments × 5 steps = 40 transitions") == 1
    assert ended.err.count(f"A2C on skiing, 8 × 5, seed 0 → runs/{run_dir.name}") == 1
    config = read_config(run_dir)
    assert config["num_ranks"] == 2
    assert (config["options"]["num_envs"], config["batch_size"], config["resumptions"]) == (8, 40, [])
    assert read_config(folder / "alone")["num_ranks"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            # a reward at every step: where there is none, normalised advantages are rounding, amplified
            ("--game", "skiing", *PPO, "--total-transitions", "640", "--measure-every", "2"),
            id="ppo on skiing",
        ),
        pytest.param((*CARTPOLE, "--total-transitions", "1000"), id="a2c on CartPole"),
        pytest.param((*CARTPOLE, "--total-transitions", "400", "--lr-batch-scale", "500"), id="a rate by batch size"),
        pytest.param(  # the window holds all episodes, because ranks do not know the order of the episodes in an update
            (*CARTPOLE, "--num-envs", "64", "--total-transitions", "6400", "--episode-window", "9999"),
            id="a2c on kept forwards",
        ),
    ],
)
def test_two_ranks_of_srun_record_what_one_process_records(arguments, tmp_path):
    ranks = start_step(tmp_path, *arguments, "--out", str(tmp_path / "run"))
    alone = run(tmp_path, *arguments, "--out", "alone")
    first, second = (rank.end() for rank in ranks)
    assert (alone.exit_code, first.exit_code, second.exit_code) == (0, 0, 0), first.err + second.err
    assert_alike(tmp_path / "run", tmp_path / "alone")
    assert first.out.count("Details by loss: rlgns show") == 1
    assert (second.out, second.err) == ("", "")
    assert read_config(tmp_path / "run")["num_ranks"] == 2
    files_of_rank_1 = {path.name for path in (tmp_path / "rank1").iterdir()}
    assert files_of_rank_1 == {"home", "stdout", "stderr"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((*CARTPOLE, "--no-fast"), id="a2c as SB3 collects it"),
        pytest.param(("--env", "Pendulum-v1", *A2C), id="a2c with continuous actions"),
    ],
)
def test_where_sb3_collects_ranks_act_apart_and_train_together(arguments, tmp_path):
    arguments = (*arguments, "--total-transitions", "1000")
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        ranks = start_step(tmp_path / name, *arguments, "--out", str(tmp_path / name / "run"))
        assert [rank.end().exit_code for rank in ranks] == [0, 0]
    assert_alike(tmp_path / "once" / "run", tmp_path / "again" / "run")
    records = read_records(tmp_path / "once" / "run" / "metrics.jsonl")
    summary = json.loads((tmp_path / "once" / "run" / "summary.json").read_text())
    assert summary["progress/transitions"] == 1000
    assert {
        moments.num_groups for r in records for moments in [measurement_from_record(r).get("total")] if moments
    } == {8}


def test_episodes_of_both_ranks_are_counted(tmp_path):
    """Records are ten updates apart: episodes that end between two of them count, too."""
    arguments = (*CARTPOLE, "--no-measure", "--total-transitions", "1600")
    ranks = start_step(tmp_path, *arguments, "--out", str(tmp_path / "run"))
    assert run(tmp_path, *arguments, "--out", "alone").exit_code == 0
    assert [rank.end().exit_code for rank in ranks] == [0, 0]
    own, expected = (read_records(tmp_path / name / "metrics.jsonl") for name in ("run", "alone"))
    for key in ("rollout/episodes", "rollout/episode_return", "rollout/episode_length"):
        assert [record[key] for record in own] == [record[key] for record in expected]
    assert own[-1]["rollout/episodes"] > 50


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num-envs", "9"), "num_envs 9 cannot be divided among 2 ranks; use for instance --num-envs 10"),
        (("--num-groups", "5"), "num_groups 5 cannot be divided among 2 ranks; use a multiple of it"),
        (("--num-groups", "6"), "not divisible into"),
        (("--num-envs", "2"), "num_envs 2 is too few to measure by environment"),
    ],
)
def test_what_cannot_be_divided_among_ranks_is_one_line_of_each_and_exit_code_2(arguments, words, tmp_path):
    for ended in run_step(tmp_path, "--game", "breakout", *A2C, *arguments, "--out", str(tmp_path / "run")):
        assert ended.exit_code == 2, ended.err
        assert ended.err.startswith("error: ")
        assert words in ended.err
        assert len(ended.err.splitlines()) == 1, ended.err
    assert not (tmp_path / "run").exists()


# --- stopped and continued --------------------------------------------------------------------------------------------

FOR_EVER = (*CARTPOLE, "--total-transitions", "100000000", "--log-every", "1")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_alike_alone_and_in_ranks(number, rank, tmp_path):
    run_dir = tmp_path / "run"
    ranks = start_step(tmp_path, *FOR_EVER, "--out", str(run_dir))
    wait_until(lambda: has_records(run_dir, 6))
    os.kill(ranks[rank].pid, number)
    ended = [rank.end() for rank in ranks]
    assert [one.error_lines for one in ended] == [[], []]
    stopped_at = load_checkpoint(run_dir / "checkpoint.pt")["num_updates"]
    assert steps_of(run_dir) == list(range(1, stopped_at + 1))
    assert f"stopped after update {stopped_at:,}; continue with --resume" in ended[0].out
    assert json.loads((run_dir / "summary.json").read_text())["exit_code"] == 128 + number
    assert [one.exit_code for one in ended] == [128 + number] * 2

    total = str((stopped_at + 8) * 40)
    (tmp_path / "again").mkdir()
    shutil.copytree(run_dir, tmp_path / "copy")
    ranks = start_step(tmp_path / "again", "--resume", str(tmp_path / "copy"), "--total-transitions", total)
    alone = run(tmp_path, "--resume", "run", "--total-transitions", total)
    assert [alone.exit_code, *(rank.end().exit_code for rank in ranks)] == [0, 0, 0], alone.err
    assert steps_of(run_dir) == list(range(1, stopped_at + 9))
    assert_alike(tmp_path / "copy", run_dir)
    assert [read_config(path)["num_ranks"] for path in (run_dir, tmp_path / "copy")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [A2C, (*PPO, "--measure-every", "2")], ids=["a2c", "ppo"])
def test_a_run_of_one_process_goes_on_in_two_ranks_as_it_does_alone(algorithm, tmp_path):
    first = run(tmp_path, "--env", "CartPole-v1", *algorithm, "--total-transitions", "384", "--out", "alone")
    assert first.exit_code == 0, first.err
    shutil.copytree(tmp_path / "alone", tmp_path / "run")
    ranks = start_step(tmp_path, "--resume", str(tmp_path / "run"), "--total-transitions", "768")
    alone = run(tmp_path, "--resume", "alone", "--total-transitions", "768")
    assert [alone.exit_code, *(rank.end().exit_code for rank in ranks)] == [0, 0, 0], alone.err
    assert_alike(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_stops_its_ranks_in_good_order(number, tmp_path):
    run_dir = tmp_path / "run"
    agent = torchrun(tmp_path, *FOR_EVER, "--out", "run")
    wait_until(lambda: has_records(run_dir, 3))
    os.kill(agent.pid, number)
    ended = end(agent)
    assert ended.exit_code == 1  # torchrun's own exit code, whatever those of its ranks are
    stopped_at = load_checkpoint(run_dir / "checkpoint.pt")["num_updates"]
    assert steps_of(run_dir) == list(range(1, stopped_at + 1))
    assert ended.out.count("Details by loss: rlgns show") == 1
    assert f"stopped after update {stopped_at:,}; continue with --resume run" in ended.out
    assert json.loads((run_dir / "summary.json").read_text())["exit_code"] > 128


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_rank_that_is_killed_ends_the_others_with_an_error_and_the_run_can_be_continued(tmp_path):
    run_dir = tmp_path / "run"
    ranks = start_step(tmp_path, *FOR_EVER, "--checkpoint-seconds", "0.1", "--out", str(run_dir))
    wait_until(lambda: has_records(run_dir, 6) and has_checkpoint(run_dir))
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert ranks[1].end().exit_code == -signal.SIGKILL
    ended = ranks[0].end()
    assert ended.exit_code == 1, ended.err
    assert "rank" in ended.error_lines[-1] or "RuntimeError" in ended.err
    saved_at = load_checkpoint(run_dir / "checkpoint.pt")["num_updates"]
    alone = run(tmp_path, "--resume", "run", "--total-transitions", str((saved_at + 3) * 40))
    assert alone.exit_code == 0, alone.err
    assert steps_of(run_dir) == list(range(1, saved_at + 4))


@pytest.mark.slow
def test_torchrun_starts_again_from_the_checkpoint_whichever_rank_was_killed(tmp_path):
    run_dir = tmp_path / "run"
    options = ("--total-transitions", "16000", "--log-every", "1", "--checkpoint-seconds", "0.1", "--out", "run")
    agent = torchrun(tmp_path, *CARTPOLE, *options, max_restarts=2)
    for rank, num_records in ((0, 20), (1, 60)):
        wait_until(lambda num=num_records: has_records(run_dir, num) and has_checkpoint(run_dir))
        os.kill(ranks_of(agent)[rank], signal.SIGKILL)
        wait_until(lambda done=rank: len(read_config(run_dir)["resumptions"]) == done + 1)
    ended = end(agent)
    assert ended.exit_code == 0, ended.err
    first, second = (resumption["progress/steps"] for resumption in read_config(run_dir)["resumptions"])
    assert 0 < first < second < 400
    events = [line for line in read_lines(run_dir / "metrics.jsonl")[0] if "event" in line]
    assert [line["progress/steps"] for line in events] == [first, second]
    assert steps_of(run_dir) == list(range(1, 401))
    assert json.loads((run_dir / "summary.json").read_text()).items() >= {
        "progress/transitions": 16_000, "exit_code": 0,
    }.items()  # fmt: skip


@pytest.mark.slow
def test_torchrun_without_restarts_fails_when_a_rank_is_killed(tmp_path):
    agent = torchrun(tmp_path, *FOR_EVER, "--out", "run")
    wait_until(lambda: has_records(tmp_path / "run", 6))
    os.kill(ranks_of(agent)[0], signal.SIGKILL)
    assert end(agent).exit_code == 1
