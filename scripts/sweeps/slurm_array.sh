#!/bin/bash
# A sweep as an array of Slurm jobs: each task stops its run in good order before its time is over and is queued again.
#
#   sbatch --array=1-8 scripts/sweeps/slurm_array.sh FILE.yaml OUT
#       Without a server. Task i of n has every n-th run of the grid: `rlgns sweep FILE.yaml --out OUT --shard i/n`.
#       A restarted task runs nothing twice and goes on with interrupted runs from their checkpoints. To submit one task
#       of eight again: SHARDS=8 sbatch --array=3 …
#
#   SWEEP_ID=ENTITY/PROJECT/SWEEP sbatch --array=1-8 scripts/sweeps/slurm_array.sh FILE.yaml
#       W&B's server hands out the runs of the sweep that `wandb sweep FILE.yaml` made; any method, any number of tasks.
#       The server never gives an interrupted run out again, so the restarted task goes on with its own, under the same
#       W&B id, before its agent asks for another. Two things cannot be done: a run that was lost with a task that does
#       not come back (scancel) stays "crashed" in W&B, and one that early_terminate stopped in the same seconds as
#       Slurm stopped the task is taken up again. (W&B's own way, Run.mark_preempting, would restart a run with all that
#       it wrote into its config as flags, which no strict program takes.)
#
# Submit from the checkout with the environment active. OUT and runs/ must lie on a file system that all nodes share.
# WORKERS=2 runs two at once in a task (first form). GPUs, memory, partition, time: options of sbatch as usual. A run
# that spans several GPUs says so in the file's command (torchrun …); one task has one node.

#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out
# 120 s: the update in hand and its checkpoint, then W&B's uploads, which have 60 s; Slurm counts in half minutes.

set -u
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit
fi
file=${1:?usage: sbatch --array=1-8 $0 FILE.yaml OUT, or with SWEEP_ID set: FILE.yaml}
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1

child= ending= signals=0

end() { # the run saves what it has; then Slurm is asked for a restart, or has decided already
    ending=${ending:-$1} signals=$((signals + 1))
    if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi
}
trap 'end requeue' USR1
trap 'end stop' TERM INT

run() { # in the background, because bash lets a command in the foreground end before it looks at a signal
    local before code
    if [ -n "$ending" ]; then return 143; fi
    "$@" &
    child=$!
    if [ -n "$ending" ]; then kill -TERM "$child" 2>/dev/null; fi
    while before=$signals; wait "$child"; code=$?; [ "$before" != "$signals" ]; do :; done
    child=
    return "$code"
}

go_on() { # with the run that this task's agent was at when it ended; nothing where it had finished
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
given = {name: one["value"] for name, one in yaml.safe_load(newest.read_text()).items() if name != "wandb_version"}
command = Sweep(file).command(RunSpec(run_id, given))
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
print(f"going on with run {run_id}", flush=True)
os.execvp(command[0], command)
END
}

if [ -n "${SWEEP_ID:-}" ]; then
    # what this task's agent was given, by run; WANDB_DIR is where agents keep it
    export WANDB_DIR="$PWD/runs/agents/${SLURM_ARRAY_JOB_ID:-0}_${SLURM_ARRAY_TASK_ID:-0}"
    mkdir -p "$WANDB_DIR"
    shopt -s nullglob
    run go_on "$SWEEP_ID" "$WANDB_DIR/wandb/sweep-${SWEEP_ID##*/}"/config-*.yaml
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
