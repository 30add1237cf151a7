"""A probe of the last policy decides the recommendation; probes of other policies, or damaged ones, do not."""

import json
import math

import pytest

from rlgns.noise.history import History
from rlgns.noise.scale import NoiseScale
from rlgns.runs.batch_advice import BatchAdvisor, Flags
from rlgns.runs.probes import RECORDS, read_last_probe
from rlgns.runs.recommendation import recommend
from rlgns.runs.recommendation_words import box_lines
from rlgns.runs.trained_batch import TrainedBatch

BATCH = TrainedBatch(
    count=16, length=5, unit="environment", examples="transitions", count_flag="--num-envs", length_flag="--num-steps",
    smallest=4, multiple_of=1, learning_rate=7e-4, rate_exponent=0.5, scales_rate=False, vf_coef=0.25,
)  # fmt: skip


def record(loss="total", effort=30_000, low=400.0, point=620.0, high=1_200.0, at=100_000, checkpoint="last", **others):
    return {
        "probe/checkpoint": checkpoint, "progress/transitions": at, "probe/loss": loss, "probe/num_envs": 128,
        "probe/num_steps": 5, "probe/num_rollouts": 46, "probe/transitions": effort, "probe/sq_norm": 0.5,
        "probe/trace_covariance": 310.0, "probe/noise_scale": point, "probe/noise_scale_low": low,
        "probe/noise_scale_high": high, "probe/noise_scale_state": "interval", **others,
    }  # fmt: skip


def write(folder, *records):
    (folder / RECORDS).write_text("".join(f"{json.dumps(record)}\n" for record in records) + "no record\n")


def test_the_probe_of_the_last_policy_with_the_most_transitions_is_read(tmp_path):
    write(
        tmp_path,
        record(point=620.0),
        record(effort=200_000, point=1_200.0, high=1_600.0),
        record(effort=5_000, point=300.0),
        record(effort=10**9, at=50_000),
        record(effort=10**9, checkpoint="50000"),
        record("policy", high=None, point=None),
        record("value", **{"probe/noise_scale_low": None}),
        {"surface/num_steps": 5, "probe/checkpoint": "last", "progress/transitions": 100_000},
    )
    scales = read_last_probe(tmp_path, 100_000)
    assert set(scales) == {"total", "policy"}
    assert (scales["total"].point, scales["total"].high, scales["total"].method) == (1_200, 1_600, "frozen")
    assert math.isnan(scales["policy"].point)
    assert (scales["policy"].state, scales["policy"].low) == ("lower bound", 400)
    assert scales["total"].batch_size == 640


def test_without_a_probe_there_is_nothing_to_read(tmp_path):
    assert read_last_probe(tmp_path, 100) == {}
    (tmp_path / RECORDS).mkdir()
    assert read_last_probe(tmp_path, 100) == {}


def probed(low, point, high):
    return {"total": NoiseScale(point, low, high, 1.0, point, 1.0, math.nan, 46, 640, 0.95, "frozen")}


def test_a_probe_with_an_interval_decides_whatever_training_measured():
    advice = recommend(History(), BATCH, probed=probed(408, 629, 1_211))
    assert (advice.verdict, advice.loss, advice.count, advice.confidence) == ("larger", "total", 128, "good")
    said = " ".join(" ".join(box_lines(advice, History(), BatchAdvisor(80, Flags(), 1, None), run="runs/one")).split())
    assert "--num-envs 128 --num-steps 5" in said
    assert "noise scale of the total loss 629 [408, 1,211] transitions, probed at the last policy, 46 rollouts" in said


@pytest.mark.parametrize("scales", [{}, probed(408, math.nan, math.inf)])
def test_a_probe_without_an_upper_bound_decides_nothing(scales):
    assert recommend(History(), BATCH, probed=scales).verdict == "not measured"
