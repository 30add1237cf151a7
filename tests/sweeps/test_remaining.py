"""The time that a sweep takes at most."""

import json

from rlgns.sweeps.jobs import Job
from rlgns.sweeps.remaining import budget, seconds_left
from rlgns.sweeps.spec import RunSpec


def job(out, name, *, examples=None, speed=100.0, **parameters):
    made = Job(RunSpec(name, {"num_envs": 4, "num_steps": 5, **parameters}), out)
    if examples is not None:
        made.state = "running"
        made.directory.mkdir()
        (made.directory / "config.json").write_text(json.dumps({"options": parameters, "max_examples": 1000}))
        record = {"progress/steps": 1, "progress/examples": examples, "progress/transitions": examples}
        record["time/transitions_per_second"] = speed
        (made.directory / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        made.follower.update()
    return made


def test_the_budget_is_what_the_parameters_say(tmp_path):
    assert budget(job(tmp_path, "a", total_transitions=1000)) == 1000
    assert budget(job(tmp_path, "b", max_steps=7)) == 7 * 20
    assert budget(job(tmp_path, "c")) is None


def test_the_time_is_that_of_the_runs_in_progress_and_those_that_wait_shared_by_the_workers(tmp_path):
    jobs = [
        job(tmp_path, "a", examples=400, total_transitions=1000),  # 6 s
        job(tmp_path, "b", examples=900, speed=50.0, total_transitions=1000),  # 2 s
        job(tmp_path, "c", total_transitions=1500),  # 20 s at 75 a second
    ]
    assert seconds_left(jobs, 2) == (6 + 2 + 20) / 2
    assert seconds_left(jobs[:2], 2) == 6  # one run has one worker
    assert seconds_left([*jobs, job(tmp_path, "d")], 2) is None  # nobody knows how long it is
    assert seconds_left(jobs[2:], 2) is None  # no speed is known
