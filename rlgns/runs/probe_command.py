"""What the probes of agents and of supervised runs share: the loop over checkpoints, and where results go."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlgns.runs.files import write_json
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.probe_options import ProbeOptions
from rlgns.runs.records import Record, RecordWriter, plain
from rlgns.runs.stopping import StopRequest
from rlgns.runs.verbosity import remark
from rlgns.runs.wandb_options import WandbOptions
from rlgns.runs.wandb_sink import WandbSink, open_wandb


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a probe that is done.

    Attributes:
        records: Flat records for `probe.jsonl`.
        lines: Lines for the terminal.
        figures: Figures by name, as PNG files that have been written.
    """

    records: Sequence[Record]
    lines: Sequence[str]
    figures: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the results of a probe go.

    Attributes:
        folder: Directory of the records, figures and W&B's files.
        stem: Beginning of the files' names.
        facts: config.json of the run; its options say how the run appears in W&B.
    """

    folder: Path
    stem: str
    facts: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Path of a file of the probe.

        Args:
            name: What follows the stem.
        """
        return self.folder / f"{self.stem}{name}"


def probe_checkpoints(
    place: Place,
    options: ProbeOptions,
    checkpoints: Mapping[str, Path],
    parts: Callable[[str, Path, StopRequest], Iterator[Part]],
) -> int:
    """Probe checkpoints one after the other; everything is written as soon as it is known.

    Args:
        place: Where the results go.
        options: Options of the probe.
        checkpoints: Checkpoints by name.
        parts: Probes one checkpoint part by part; a signal ends it with what is known.

    Returns:
        0, or 128 + n after signal n.
    """
    keep_freed_memory()
    if options.num_torch_threads:
        torch.set_num_threads(options.num_torch_threads)
    stop, records = StopRequest(), list[dict[str, Any]]()
    with stop.listening(_say), RecordWriter(place.file(".jsonl")) as writer:
        wandb = _open_wandb(place, options)
        for step, (name, path) in enumerate(checkpoints.items()):
            row: dict[str, object] = {}
            for part in parts(name, path, stop):
                for record in part.records:
                    writer.write(record)
                    records.append(plain(record))
                    row |= wandb_row(record)
                print("\n".join(part.lines), flush=True)
                if wandb:
                    for figure, file in part.figures.items():
                        wandb.log_figure(f"probe/{figure}", file, step)
            if wandb and row:
                wandb.log(row, step)
            if stop.signal_number is not None:
                break
        code = 0 if stop.signal_number is None else 128 + stop.signal_number
        if options.json:
            write_json(options.json, records)
        if wandb:
            _log_tables(wandb, records)
            wandb.log_artifact([place.file(".jsonl")], f"{place.folder.resolve().name}-{place.stem}", "probe")
            wandb.finish({}, code)
    return code


IN_THE_KEY = ("loss", "num_steps", "batch_size", "direction")
"""Fields of a record that become part of the key in W&B, so that each loss or batch size has its own chart."""


def wandb_row(record: Record) -> dict[str, object]:
    """The numbers of one record under keys of their own: probe/noise_scale of the policy is probe/policy/noise_scale.

    Args:
        record: A flat record of a probe.
    """
    kinds = {key.partition("/")[0] for key in record} - {"probe", "progress", "time"}
    kind = min(kinds, default="probe")
    parts = [str(record[f"{kind}/{name}"]) for name in IN_THE_KEY if f"{kind}/{name}" in record]
    if kind == "probe":
        parts = parts[:1]
    place = "/".join([kind, *parts])
    row: dict[str, object] = {}
    for key, value in record.items():
        room, _, name = key.partition("/")
        if room == "progress":
            row[key] = value
        elif room == kind and isinstance(value, int | float):
            row[f"{place}/{name}"] = value
    return row


def _log_tables(wandb: WandbSink, records: Sequence[Mapping[str, Any]]) -> None:
    """Every kind of record as a table."""
    by_keys: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        by_keys.setdefault(tuple(record), []).append(record)
    for keys, rows in by_keys.items():
        kinds = [key.partition("/")[0] for key in keys]
        wandb.log_table(f"probe_{next((k for k in kinds if k not in ('probe', 'progress')), 'probe')}", rows)


def _open_wandb(place: Place, options: ProbeOptions) -> WandbSink | None:
    saved = dict(place.facts.get("options", {}))
    mode = options.wandb or saved.get("wandb") or "disabled"
    name = place.folder.resolve().name
    return open_wandb(
        WandbOptions(
            mode=mode,
            project=saved.get("wandb_project") or "rlgns",
            entity=saved.get("wandb_entity"),
            group=saved.get("wandb_group") or str(place.facts.get("wandb_group") or name),
            job_type="probe",
            name=f"{name}-probe",
            x_axis="progress/transitions" if place.facts.get("unit", "transitions") == "transitions"
            else "progress/examples",
        ),
        place.folder,
        {**saved, **{key: value for key, value in place.facts.items() if key != "options"}},
        secrets.token_hex(4),
        say=_say,
    )  # fmt: skip


def _say(line: str) -> None:
    remark(line)
