import hashlib
import json
import os
import pickle
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stable_baselines3
import torch
from support.environments import PowerCutError, RandomWalks, SavedRandomWalks

import rlgns.agents.task
from rlgns.agents import A2C
from rlgns.agents.config import ResolvedConfig, TrainConfig, resolved
from rlgns.agents.options import parse
from rlgns.agents.restoring import restore
from rlgns.runs.checkpoints import (
    FORMAT,
    CheckpointError,
    generator_state,
    load_checkpoint,
    restore_generators,
    save_checkpoint,
)
from rlgns.runs.records import columns, read_lines, read_records

STATE = {"policy": {"weight": torch.arange(4.0)}, "num_updates": 3, "names": ["a", None, 2.5, True]}


def assert_same_state(one, other, path="state"):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same_state(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_state(a, b, f"{path}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


# The file


def test_what_is_loaded_is_what_was_saved(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    assert_same_state(load_checkpoint(path), {"format": FORMAT, **STATE})
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_checkpoint_and_no_scrap(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_checkpoint(path, {**STATE, "num_updates": 4})
    assert error.value.filename == str(path)
    assert load_checkpoint(path)["num_updates"] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint.pt is missing; .* start it anew"):
        load_checkpoint(tmp_path / "checkpoint.pt")


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_the_bomb_goes_off_in_pickles_own_hands(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went_off")))
    assert (tmp_path / "went_off").exists()


@pytest.mark.parametrize("container", ["pickle", "torch", "torch, nested", "torch, legacy"])
def test_a_foreign_checkpoint_that_would_run_code_is_refused_and_runs_none(container, tmp_path):
    path, marker = tmp_path / "checkpoint.pt", tmp_path / "went_off"
    match container:
        case "pickle":
            path.write_bytes(pickle.dumps(Bomb(marker)))
        case "torch":
            torch.save(Bomb(marker), path)
        case "torch, nested":
            torch.save({"format": FORMAT, **STATE, "extra": Bomb(marker)}, path)
        case _:
            torch.save(Bomb(marker), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="is not a checkpoint that this project wrote") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_what_is_no_checkpoint_of_ours_is_refused_in_one_line(tmp_path):
    good = tmp_path / "good.pt"
    save_checkpoint(good, {**STATE, "large": torch.zeros(10_000)})
    whole = good.read_bytes()
    contents = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not a checkpoint at all\n",
        "zeros": bytes(len(whole)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other torch file")
    torch.save(torch.zeros(2), tmp_path / "tensor")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("data", "{}")
    stable_baselines3.A2C("MlpPolicy", RandomWalks(4, seed=0), device="cpu").save(tmp_path / "sb3.zip")
    (tmp_path / "folder").mkdir()
    for name in (*contents, "other torch file", "tensor", "zip", "sb3.zip", "folder"):
        with pytest.raises(ValueError, match="not a checkpoint that this project wrote") as error:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value), name


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_checkpoint_of_which_any_one_byte_has_changed_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    assert len(whole) < 3000
    for at in range(len(whole)):
        path.write_bytes(flipped(whole, at))
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_cut_or_longer_anywhere_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for content in (*(whole[:end] for end in range(len(whole))), whole + b"\0", b"\0" + whole, whole + whole):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="put back a copy, or start a new run with another --out"):
            load_checkpoint(path)


def test_the_checksum_is_the_archives_comment_and_covers_all_before_it(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    assert content[-77:] == b"rlgns sha256 " + hashlib.sha256(content[:-77]).hexdigest().encode()
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == content[-77:]
    assert torch.load(path)["num_updates"] == 3  # torch alone can still read the file


def test_a_checkpoint_from_before_there_was_a_checksum_loads_and_its_entries_are_verified(tmp_path):
    path, weight = tmp_path / "checkpoint.pt", torch.arange(1000.0)
    torch.save({"format": FORMAT, "weight": weight}, path)
    whole = path.read_bytes()
    assert torch.equal(load_checkpoint(path)["weight"], weight)
    path.write_bytes(flipped(whole, whole.index(weight.numpy().tobytes()) + 1234))
    assert not torch.equal(torch.load(path)["weight"], weight)  # torch does not detect the change
    with pytest.raises(CheckpointError, match=r"is damaged .the entry checkpoint/data/0 differs from its checksum"):
        load_checkpoint(path)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(1).expand(1 << 50)},
        {"weight": torch.empty(1 << 40, device="meta")},
        {"weight": torch.zeros(3).to_sparse()},
        {"weight": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)},
        {"weight": torch.nn.Parameter(torch.zeros(1)), "when": complex(1, 2)},
        {"shape": torch.Size([1]), "kind": torch.float32},
    ],
    ids=["expanded", "meta", "sparse", "nested", "complex", "dtype"],
)
def test_what_this_project_never_stores_is_refused_in_one_line(state, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": FORMAT, **state}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint that this project wrote") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_values_that_hold_themselves_or_a_thousand_others_are_looked_through_once(tmp_path):
    path, ring = tmp_path / "checkpoint.pt", []
    ring.append(ring)
    torch.save({"format": FORMAT, "ring": ring, "deep": nested(200)}, path)
    assert load_checkpoint(path)["deep"] == nested(200)


def test_a_small_tensor_that_was_expanded_is_gone_on_from(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", {"weight": torch.ones(1).expand(100)})
    assert load_checkpoint(tmp_path / "checkpoint.pt")["weight"].sum() == 100


def test_an_archive_that_unpacks_to_more_than_it_holds_is_not_unpacked(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": FORMAT, "weight": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="its entries are compressed"):
        load_checkpoint(path)


def test_a_checkpoint_that_is_a_device_or_a_pipe_is_not_read(tmp_path):
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zero", "pipe"):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            load_checkpoint(tmp_path / name)


def test_saving_writes_through_no_link_that_lies_in_its_way(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".checkpoint.pt.tmp").symlink_to(precious)
    (tmp_path / "checkpoint.pt").symlink_to(precious)
    save_checkpoint(tmp_path / "checkpoint.pt", STATE)
    assert precious.read_text() == "mine"
    assert load_checkpoint(tmp_path / "checkpoint.pt")["num_updates"] == 3


def test_random_generators_go_on_where_their_states_were_taken(tmp_path):
    def draw():
        from_numpy = *np.random.rand(2), np.random.randn()  # noqa: NPY002 -- SB3's own
        return [random.random(), random.gauss(0, 1), *from_numpy, *torch.rand(3).tolist()]

    draw()
    save_checkpoint(tmp_path / "checkpoint.pt", {"generators": generator_state()})
    first = draw()
    draw()
    restore_generators(load_checkpoint(tmp_path / "checkpoint.pt")["generators"])
    assert draw() == first


def test_another_networks_checkpoint_is_refused(tmp_path):
    small, large = (
        A2C("MlpPolicy", RandomWalks(4, seed=0), device="cpu", policy_kwargs={"net_arch": [width]}) for width in (8, 16)
    )
    state = {"policy": small.policy.state_dict(), "optimizer": small.policy.optimizer.state_dict()}
    with pytest.raises(ValueError, match="the checkpoint holds another network's parameters") as error:
        restore(large, state)
    assert "\n" not in str(error.value)


# Resuming


OPTIONS = {
    "a2c": {"algo": "a2c", "num_steps": 5, "measure_every": 3},
    "a2c, annealed": {"algo": "a2c", "num_steps": 5, "anneal_learning_rate": True, "measure": False},
    "ppo, annealed": {"algo": "ppo", "num_steps": 16, "num_epochs": 2, "learning_rate": 3e-3, "measure_every": 2},
}
NUM_UPDATES = 12


def config_of(kind: str, out: Path) -> ResolvedConfig:
    config = TrainConfig(
        env="RandomWalks", num_envs=4, wandb="disabled", out=out, checkpoint_seconds=1e-9, log_every=1, seed=7,
        device="cpu", **OPTIONS[kind],
    )  # fmt: skip
    return resolved(replace(config, total_transitions=NUM_UPDATES * 4 * config.num_steps))


@pytest.fixture
def walks(monkeypatch):
    """Every run trains on random walks; `walks.made` lists them, and `walks.make.options` configures the next."""
    made = []

    def make(config, seed):
        made.append(make.kind(config.num_envs, seed, **make.options))
        return made[-1]

    make.kind, make.options = SavedRandomWalks, {}
    monkeypatch.setattr(rlgns.agents.task, "make_environments", make)
    return type("Walks", (), {"made": made, "make": make})


def cut_and_resume(walks, config, num_updates):
    """Simulate a power failure in the rollout after update `num_updates`, then resume from the checkpoint."""
    walks.make.options = {"power_cut_after": num_updates * config.num_steps + 2}
    with pytest.raises(PowerCutError):
        rlgns.agents.task.run(config)
    walks.make.options = {}
    assert load_checkpoint(config.out / "checkpoint.pt")["num_updates"] == num_updates
    assert rlgns.agents.task.run(parse(["--resume", str(config.out)])) == 0


def without_clock(state):
    state["counters"].pop("seconds")
    return state


@pytest.mark.parametrize("num_updates", [1, 5, 11])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_run_resumed_at_update_k_ends_where_the_uninterrupted_one_ends(kind, num_updates, walks, tmp_path, capsys):
    """Check that both runs are bitwise equal, except for the times in their records: parameters, optimiser, counters,
    random generators, environments, records.
    """
    assert rlgns.agents.task.run(config_of(kind, tmp_path / "whole")) == 0
    cut_and_resume(walks, config_of(kind, tmp_path / "cut"), num_updates)
    whole, cut = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert whole["num_updates"] == NUM_UPDATES
    assert_same_state(without_clock(cut), without_clock(whole))
    whole, cut = (
        [{k: v for k, v in row.items() if "time/" not in k} for row in read_records(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    )
    assert cut == whole
    said = capsys.readouterr()
    assert f"resuming after update {num_updates}" in said.err
    assert "fresh episodes" not in said.err


def test_environments_that_cannot_be_saved_start_fresh_episodes_with_other_seeds_and_the_run_says_so(
    walks, tmp_path, capsys
):
    walks.make.kind = RandomWalks
    cut_and_resume(walks, config_of("a2c", tmp_path / "run"), 5)
    assert "resuming after update 5; environments start fresh episodes" in capsys.readouterr().err
    first, second = (one.seeds_at_resets for one in walks.made)
    assert first == [7]
    assert len(second) == 1
    assert second[0] not in {7, None}  # otherwise the games of the first part would be played again
    steps = columns(read_records(tmp_path / "run" / "metrics.jsonl"), "progress/steps")[0]
    assert steps.tolist() == list(range(1, NUM_UPDATES + 1))


def test_a_run_stopped_inside_a_rollout_goes_on_from_its_last_update_with_fresh_episodes(walks, tmp_path, capsys):
    config = config_of("ppo, annealed", tmp_path / "run")
    walks.make.options = {"sigterm_at": 5 * config.num_steps + 3}
    assert rlgns.agents.task.run(config) == 143
    state = load_checkpoint(config.out / "checkpoint.pt")
    assert state["num_updates"] == 5
    assert "environments" not in state  # the environments are three steps ahead of the parameters
    walks.make.options = {}
    assert rlgns.agents.task.run(parse(["--resume", str(config.out)])) == 0
    said = capsys.readouterr().err
    assert "stopping after this step" in said
    assert "resuming after update 5; environments start fresh episodes" in said
    records = read_records(config.out / "metrics.jsonl")
    steps, transitions, rates = columns(records, "progress/steps", "progress/transitions", "train/learning_rate")
    assert steps.tolist() == list(range(1, NUM_UPDATES + 1))
    assert transitions.tolist() == [64 * k for k in range(1, NUM_UPDATES + 1)]
    np.testing.assert_allclose(rates, 3e-3 * (1 - steps / NUM_UPDATES), atol=1e-12)  # the schedule continued


def test_resuming_adds_to_the_records_and_notes_itself(walks, tmp_path):
    cut_and_resume(walks, config_of("a2c", tmp_path / "run"), 5)
    lines, unreadable = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert unreadable == 0
    assert [line for line in lines if "event" in line] == [{"event": "resume", "progress/steps": 5}]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [entry["progress/steps"] for entry in config["resumptions"]] == [5]
    assert config["options"]["resume"] is None
    assert rlgns.agents.task.run(parse(["--resume", str(tmp_path / "run"), "--total-transitions", "400"])) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [entry["progress/steps"] for entry in config["resumptions"]] == [5, NUM_UPDATES]
    assert config["options"]["total_transitions"] == 400
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["num_updates"] == 20


def test_a_run_that_is_measured_trains_the_same_as_one_that_is_not(walks, tmp_path):
    states = []
    for measure in (True, False):
        config = replace(config_of("ppo, annealed", tmp_path / str(measure)), measure=measure, measure_every=1)
        assert (
            rlgns.agents.task.run(replace(config, by_layer=measure, preconditioned=measure, design_effect_every=1)) == 0
        )
        states.append(without_clock(load_checkpoint(config.out / "checkpoint.pt")))
    assert states[0].pop("steps")["products"], "what the next measurement needs"
    assert_same_state(*states)


def without_time(summary):
    return {key: value for key, value in summary.items() if "seconds" not in key and not key.startswith("time/")}


@pytest.mark.parametrize("kind", ["a2c", "ppo, annealed"])
def test_a_run_killed_between_its_last_checkpoint_and_its_summary_is_closed_with_the_same_numbers(
    kind, walks, tmp_path, monkeypatch, capsys
):
    def killed(path, content):
        raise SystemExit(9)

    assert rlgns.agents.task.run(config_of(kind, tmp_path / "whole")) == 0
    for name in ("resumed", "restarted"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr("rlgns.runs.lifecycle.write_json", killed)
            rlgns.agents.task.run(config_of(kind, tmp_path / name))
        assert not (tmp_path / name / "summary.json").exists()
    records = read_records(tmp_path / "resumed" / "metrics.jsonl")
    assert rlgns.agents.task.run(parse(["--resume", str(tmp_path / "resumed")])) == 0
    assert read_records(tmp_path / "resumed" / "metrics.jsonl") == records
    monkeypatch.setenv("RLGNS_RESTART_COUNT", "2")
    assert rlgns.agents.task.run(config_of(kind, tmp_path / "restarted")) == 0
    whole, *closed = (
        without_time(json.loads((tmp_path / name / "summary.json").read_text()))
        for name in ("whole", "resumed", "restarted")
    )
    assert closed == [whole, whole]
    assert (tmp_path / "resumed" / "noise_scale.png").exists()


def test_a_restarted_run_whose_options_changed_is_refused(walks, tmp_path, monkeypatch):
    assert rlgns.agents.task.run(config_of("a2c", tmp_path / "run")) == 0
    monkeypatch.setenv("RLGNS_RESTART_COUNT", "1")
    changed = replace(config_of("a2c", tmp_path / "run"), gamma=0.5)
    with pytest.raises(ValueError, match=r"gamma is 0.5, but the run in .* has gamma 0.99.*give --gamma 0.99, or"):
        rlgns.agents.task.run(changed)


def test_a_checkpoint_of_another_algorithm_is_named(walks, tmp_path):
    for kind in ("a2c", "ppo, annealed"):
        assert rlgns.agents.task.run(config_of(kind, tmp_path / kind)) == 0
    (tmp_path / "a2c" / "checkpoint.pt").replace(tmp_path / "ppo, annealed" / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"is a checkpoint of A2C on RandomWalks, not of PPO on RandomWalks"):
        rlgns.agents.task.run(parse(["--resume", str(tmp_path / "ppo, annealed"), "--total-transitions", "4000"]))


# Divergence


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize(("kind", "num_good"), [("a2c", 4), ("ppo, annealed", 4), ("a2c", 0)])
def test_rewards_that_become_nan_stop_the_run_with_the_last_good_checkpoint(
    kind, num_good, measure, walks, tmp_path, capsys
):
    config = replace(config_of(kind, tmp_path / "run"), measure=measure, measure_every=1, checkpoint_seconds=1e9)
    walks.make.options = {"nan_after": num_good * config.num_steps + 2}
    assert rlgns.agents.task.run(config) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"training diverged at update {num_good + 1}: " in errors[0]
    assert "the last checkpoint is kept; try a smaller --learning-rate" in errors[0]
    state = load_checkpoint(config.out / "checkpoint.pt")
    assert state["num_updates"] <= num_good
    assert all(torch.isfinite(value).all() for value in state["policy"].values())
    steps = columns(read_records(config.out / "metrics.jsonl"), "progress/steps")[0]
    assert steps.tolist() == list(range(1, num_good + 1))
    assert json.loads((config.out / "summary.json").read_text())["exit_code"] == 1
