"""Batches that change while training: chosen as the rules say, recorded, resumable, and without effect when off."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlgns.commands.cli import main
from rlgns.noise.moments import moments_from_groups
from rlgns.noise.scale import noise_scale
from rlgns.runs.batch_rates import rate_ratio
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import read_records
from rlgns.tasks import entry
from rlgns.tasks.batch_rules import nearest_batch_size, wanted_batch_size
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.config import DEFAULTS
from rlgns.tasks.learning import Learner
from rlgns.tasks.training import SupervisedTraining

QUIET = ("--wandb", "disabled", "--num-torch-threads", "1")


def digits(out, *flags):
    assert entry.digits([*QUIET, "--out", str(out), *flags]) == 0
    return read_records(out / "metrics.jsonl")


def known(sq_norm, trace, count=30):
    """A noise scale from measurements of 8 groups of 8 examples, in 20 dimensions."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(count, 8, 20)) * math.sqrt(trace / 20 / 8)
    gradients[..., 0] += math.sqrt(sq_norm)
    return noise_scale([moments_from_groups(each, 8) for each in gradients])


def test_the_batch_is_the_root_of_ratio_times_noise_scale():
    scale = known(1.0, 100.0, count=100)
    assert scale.state == "interval"
    assert wanted_batch_size(scale, 100.0) == pytest.approx(math.sqrt(100 * scale.point))
    assert wanted_batch_size(None, 100.0) is None
    assert wanted_batch_size(known(0.0, 400.0, count=2), 100.0) is None  # an open interval changes nothing


@pytest.mark.parametrize(
    ("wanted", "stretch", "most", "size"),
    [(100, 1, 10_000, 96), (90, 1, 64, 64), (0.1, 1, 64, 4), (1_000, 32, 10_000, 1_024), (1, 32, 64, 128)],
)
def test_batches_are_powers_of_two_or_three_times_one(wanted, stretch, most, size):
    assert nearest_batch_size(wanted, stretch, most) == size


def test_the_rate_follows_the_rule_of_the_paper():
    assert rate_ratio(32, 128, 64, 1) == pytest.approx((1 / (1 + 64 / 128)) / (1 / (1 + 64 / 32)))
    assert rate_ratio(32, 128, 64, 0.5) == pytest.approx(math.sqrt(rate_ratio(32, 128, 64, 1)))


def test_a_run_follows_its_noise_scale_and_says_so(tmp_path, capsys):
    records = digits(
        tmp_path / "run", "--batch-size", "16", "--learning-rate", "0.1", "--max-epochs", "20",
        "--adaptive-batch", "noise_scale", "--adaptive-ratio", "64",
    )  # fmt: skip
    sizes = [record["train/batch_size"] for record in records]
    assert sizes[0] == 16
    assert sizes[-1] > 32
    growth = np.diff([0, *(record["progress/steps"] for record in records)])
    drawn = np.cumsum(growth * sizes)
    assert [record["progress/examples"] for record in records] == drawn.tolist()
    rates = [record["train/learning_rate"] for record in records]
    assert rates[-1] > rates[0]
    assert records[-1]["progress/examples"] >= 20 * 1438
    out = capsys.readouterr().out
    assert "The batch changed while training" in out
    assert f"16 to {sizes[-1]:,}" in " ".join(out.split()) or "16 to" in out


def test_seesaw_grows_the_batch_where_the_rate_would_fall(tmp_path):
    records = digits(
        tmp_path / "run", "--batch-size", "32", "--learning-rate", "0.2", "--max-epochs", "9",
        "--adaptive-batch", "seesaw", "--decay-epochs", "3", "6", "--decay-factor", "4",
    )  # fmt: skip
    last = records[-1]
    assert last["train/batch_size"] == 128 or last["train/batch_size"] == 32 * 4**2 > 1438 // 8
    early = [record for record in records if record["progress/epochs"] < 3]
    late = [record for record in records if 3.5 < record["progress/epochs"] < 5.9]
    assert {record["train/batch_size"] for record in early} == {32}
    assert {record["train/batch_size"] for record in late} == {128}
    assert late[0]["train/learning_rate"] == pytest.approx(0.2 / 2)  # divided by √4, not by 4


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped():
    def training():
        config = replace(DEFAULTS["digits"], batch_size=16, adaptive_batch="noise_scale", adaptive_ratio=64.0)
        data = TASKS["digits"].load(config)
        return SupervisedTraining("digits", Learner(TASKS["digits"], config, data, torch.device("cpu"), ALONE, [0]))

    def steps(run, count):
        return [record for _ in range(count) if (record := run.step())]

    whole, part, resumed = training(), training(), training()
    steps(whole, 200)
    records = steps(part, 120)
    resumed.restore(copy.deepcopy(part.state()), records)
    assert resumed.learner.batch_size == part.learner.batch_size > 16
    steps(resumed, 80)
    assert resumed.learner.examples == whole.learner.examples
    assert resumed.learner.batch_size == whole.learner.batch_size
    for one, other in zip(resumed.learner.model.parameters(), whole.learner.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_a_rule_nothing_is_recorded_about_the_batch(tmp_path):
    records = digits(tmp_path / "run", "--max-epochs", "2")
    assert all("train/batch_size" not in record for record in records)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--adaptive-batch", "seesaw"), "say where, as in --decay-epochs"),
        (("--adaptive-batch", "noise_scale", "--no-measure"), "leave out --no-measure"),
        (("--adaptive-ratio", "3"), "has no effect with adaptive_batch none"),
        (("--adaptive-batch", "noise_scale", "--max-batch-size", "8"), "max_batch_size 8 is below batch_size"),
        (("--adaptive-batch", "noise_scale", "--swap-workers", "2"), "exclude each other"),
    ],
)
def test_rules_that_cannot_work_are_refused(flags, reason, tmp_path, capsys):
    assert main(["train", "digits", *QUIET, "--out", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.strip().splitlines()) == 1
