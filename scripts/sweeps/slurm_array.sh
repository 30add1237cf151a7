#!/bin/bash
# A sweep as an array of Slurm jobs: before its time is over, each task lets its run save a checkpoint and is requeued.
#
#   sbatch --array=1-8 scripts/sweeps/slurm_array.sh FILE.yaml OUT
#       Without a server. Task i of n runs every n-th run of the grid: `rlgns sweep FILE.yaml --out OUT --shard i/n`.
#       A restarted task repeats no finished run and resumes interrupted runs from their checkpoints. To submit one task
#       of eight again: SHARDS=8 sbatch --array=3 …
#
#   SWEEP_ID=ENTITY/PROJECT/SWEEP sbatch --array=1-8 scripts/sweeps/slurm_array.sh FILE.yaml
#       W&B's server assigns the runs of the sweep that `wandb sweep FILE.yaml` made; any method, any number of tasks.
#       The server never assigns an interrupted run again, so the restarted task resumes its own run, under the same
#       W&B id, before its agent asks for another. There are two limits: a run that was lost with a task that does
#       not come back (scancel) stays "crashed" in W&B, and a run that early_terminate stopped in the same seconds as
#       Slurm stopped the task is resumed. (W&B's own mechanism, Run.mark_preempting, would restart a run with its whole
#       config as flags, which a program that refuses unknown flags does not accept.)
#
# Submit from the checkout with the environment active. OUT and runs/ must lie on a file system that all nodes share.
# WORKERS=2 lets a task run two runs at once (first form). GPUs, memory, partition and time are options of sbatch. A run
# on several GPUs needs torchrun in the file's command; a task has one node.

#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out
# 120 s suffice for the present update and its checkpoint, then for W&B's uploads, which get 60 s; Slurm's resolution is
# half a minute.

set -u
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit
fi
file=${1:?usage: sbatch --array=1-8 $0 FILE.yaml OUT, or with SWEEP_ID set: FILE.yaml}
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1

child= ending= signals=0

end() { # ask the run to save its state; $1 says whether Slurm is to requeue the task afterwards
    ending=${ending:-$1} signals=$((signals + 1))
    if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi
}
trap 'end requeue' USR1
trap 'end stop' TERM INT

run() { # in the background, because bash handles a signal only after a foreground command has ended
    local before code
    if [ -n "$ending" ]; then return 143; fi
    "$@" &
    child=$!
    if [ -n "$ending" ]; then kill -TERM "$child" 2>/dev/null; fi
    while before=$signals; wait "$child"; code=$?; [ "$before" != "$signals" ]; do :; done
    child=
    return "$code"
}

resume_run() { # resume the run that this task's agent was interrupted in; do nothing if it had finished
    exec python - "$file" "$@" <<'END'
import json, os, shutil, sys
from pathlib import Path

import yaml

from rlgns.runs.directory import CHECKPOINT, CONFIG, RESTART_COUNT, SUMMARY
from rlgns.sweeps.spec import RunSpec, Sweep

file, sweep_id, started = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
if not started:
    sys.exit()
newest = max(map(Path, started), key=lambda path: path.stat().st_mtime)
run_id = newest.stem.removeprefix("config-")
entries = yaml.safe_load(newest.read_text())
parameters = {name: entry["value"] for name, entry in entries.items() if name != "wandb_version"}
command = Sweep(file).command(RunSpec(run_id, parameters))
for config in Path("runs").glob(f"*/{CONFIG}"):
    if json.loads(config.read_text()).get("wandb_run_id") != run_id:
        continue
    run, summary = config.parent, config.with_name(SUMMARY)
    if summary.exists() and json.loads(summary.read_text())["exit_code"] <= 128:  # finished, or failed by itself
        sys.exit()
    if (run / CHECKPOINT).exists():
        command.append(f"--out={run}")
        os.environ[RESTART_COUNT] = "1"
    else:
        shutil.rmtree(run)
*place, sweep = sweep_id.split("/")
names = ("WANDB_ENTITY", "WANDB_PROJECT")[2 - len(place) :]
os.environ |= dict(zip(names, place)) | {"WANDB_SWEEP_ID": sweep, "WANDB_RUN_ID": run_id}
print(f"resuming run {run_id}", flush=True)
os.execvp(command[0], command)
END
}

if [ -n "${SWEEP_ID:-}" ]; then
    # the agent keeps the parameters of its runs in WANDB_DIR, so every task has its own
    export WANDB_DIR="$PWD/runs/agents/${SLURM_ARRAY_JOB_ID:-0}_${SLURM_ARRAY_TASK_ID:-0}"
    mkdir -p "$WANDB_DIR"
    shopt -s nullglob
    run resume_run "$SWEEP_ID" "$WANDB_DIR/wandb/sweep-${SWEEP_ID##*/}"/config-*.yaml
    run wandb agent --forward-signals "$SWEEP_ID"
    code=$?
else
    out=${2:?OUT is missing: sbatch --array=1-8 $0 FILE.yaml OUT}
    share=${SLURM_ARRAY_TASK_ID:-1}/${SHARDS:-${SLURM_ARRAY_TASK_MAX:-1}}
    run rlgns sweep "$file" --out "$out" --shard "$share" --workers "${WORKERS:-1}"
    code=$?
fi

if [ "$ending" = requeue ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
