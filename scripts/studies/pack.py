"""Keep of a sweep's runs what a study needs.

python scripts/studies/pack.py runs/breakout_a2c scripts/studies/breakout_a2c

The sweep file, and of each run config.json, summary.json and the records, compressed, without what follows from other
values in them; `rlgns fit` and `rlgns report` say the same of both folders.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

from rlgns.runs.directory import SWEEP_FILE

FOLLOWS = re.compile(r"train/|noise/(.*/)?(noise_scale|design_effect)|rollout/episode_length|time/transitions")
"""Noise scales and design effects are pooled anew from the moments."""


def main(sweep: Path, study: Path) -> None:
    """Write study/runs anew."""
    shutil.rmtree(study / "runs", ignore_errors=True)
    (study / "runs").mkdir(parents=True)
    if (sweep / SWEEP_FILE).exists():  # not of runs that an agent of W&B has started
        shutil.copy(sweep / SWEEP_FILE, study / "runs")
    for config in sorted(sweep.glob("*/config.json")):
        run = study / "runs" / config.parent.name
        run.mkdir()
        text = config.read_text()
        options = json.loads(text)["options"]
        text = text.replace(str(Path(options["out"]).parent), f"runs/{sweep.name}")  # no paths of some machine
        if data := options.get("data_dir"):
            text = text.replace(data, Path(data).name)
        (run / "config.json").write_text(text)
        if (summary := config.with_name("summary.json")).exists():
            shutil.copy(summary, run)
        records = map(json.loads, config.with_name("metrics.jsonl").read_text().splitlines())
        kept = ({key: value for key, value in record.items() if not FOLLOWS.match(key)} for record in records)
        text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in kept)
        (run / "metrics.jsonl.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
