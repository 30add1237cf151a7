"""Packed files: they give the same fits as the directory, and files from untrusted sources do no harm."""

import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
from support.synthetic_runs import config_of, damage, write_run, write_sweep

from rlgns.commands.cli import main
from rlgns.report.sweep_page import write_report
from rlgns.runs.packed import MAX_RATIO, run_folders
from rlgns.runs.records import RecordWriter, read_records
from rlgns.study.outcomes import read_outcomes
from rlgns.study.study import as_mapping, fit_study


def refuse(line):
    raise AssertionError(f"unexpected message: {line}")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "sweep"
    write_sweep(folder, shapes=((4, 10), (16, 10), (64, 10), (256, 10)), rates=(0.5, 1, 2), seeds=2)
    (folder / "sweep.yaml").write_text("method: grid\n")
    return folder


@pytest.fixture(scope="module")
def packed(sweep) -> Path:
    file = sweep.parent / "packed" / "sweep.zip"
    assert pack(sweep, "--out", file) == 0
    return file


def pack(*arguments: object) -> int:
    return main(["pack", *map(str, arguments)])


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(file: Path, content: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return file


def directory_of(raw: bytes) -> int:
    """Offset of an archive's central directory."""
    end = raw.rindex(b"PK\x05\x06")
    return int.from_bytes(raw[end + 16 : end + 20], "little")


def names_in(place: Path, messages: list[str]) -> list[str]:
    return [run.name for run in read_outcomes([place], messages.append)]


@pytest.mark.parametrize("flags", [[], ["--lean"]], ids=["whole", "lean"])
def test_a_packed_file_gives_the_same_numbers_and_words_as_its_directory(flags, sweep, tmp_path):
    assert pack(sweep, "--out", tmp_path / "a.zip", *flags) == 0
    whole, from_file = (fit_study(read_outcomes([place], refuse)) for place in (sweep, tmp_path / "a.zip"))
    assert as_mapping(from_file) == as_mapping(whole)
    assert [(run.name, run.goals, run.seconds, run.state) for run in from_file.outcomes] == [
        (run.name, run.goals, run.seconds, run.state) for run in whole.outcomes
    ]


def test_fit_report_and_compare_read_a_packed_file(packed, sweep, tmp_path, capsys):
    printed = {}
    for place in (sweep, packed):
        assert main(["fit", str(place)]) == 0
        printed[place] = capsys.readouterr()
    assert printed[packed] == printed[sweep]
    assert main(["report", str(packed), "--log-to-wandb=disabled"]) == 0
    page = (packed.with_suffix("") / "report" / "report.html").read_text()
    assert "method: grid" in page  # from the sweep file in the directory of the runs
    assert main(["compare", str(packed), "--out", str(tmp_path / "comparison")]) == 0


def test_pages_are_the_same_except_for_the_command_that_makes_them(packed, sweep, tmp_path):
    pages = [
        write_report(fit_study(read_outcomes([place])), tmp_path / str(number), command="").read_text()
        for number, place in enumerate((sweep, packed))
    ]
    assert pages[0].replace(str(sweep), "") == pages[1].replace(str(sweep), "")


def test_the_same_runs_make_the_same_bytes_whenever_and_from_wherever_they_are_packed(packed, sweep, tmp_path):
    for path in sweep.rglob("*.json"):
        os.utime(path, (1, 1))
    assert pack(sweep, "--out", tmp_path / "again.zip") == 0
    assert pack(packed, "--out", tmp_path / "repacked.zip") == 0
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert (tmp_path / "repacked.zip").read_bytes() == packed.read_bytes()


def test_records_are_kept_whole_with_events_and_without_half_written_lines(tmp_path, capsys):
    run = write_run(tmp_path / "sweep" / "run", num_envs=4, num_steps=5, learning_rate=1e-3, goals={5.0: 100})
    with RecordWriter(run / "metrics.jsonl") as writer:
        writer.mark_resumed(50)
        writer.write({"progress/steps": 60, "train/loss": 0.1 + 0.2})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"progress/steps": 6')
    assert pack(tmp_path / "sweep", "--out", tmp_path / "a.zip") == 0
    assert "run: unusable lines of its records: 1; they are left out" in capsys.readouterr().err
    (folder,) = run_folders(tmp_path / "a.zip", refuse)
    assert read_records(folder / "metrics.jsonl", events=True) == read_records(run / "metrics.jsonl", events=True)


def test_a_lean_file_leaves_out_what_can_be_computed_again(tmp_path):
    run = write_run(tmp_path / "sweep" / "run", num_envs=4, num_steps=5, learning_rate=1e-3, goals={5.0: 100})
    with RecordWriter(run / "metrics.jsonl") as writer:
        writer.write({"train/loss": 1.0, "noise/total/noise_scale_low": 2.0, "noise/total/sq_norm": 3.0})
    assert pack(tmp_path / "sweep", "--out", tmp_path / "a.zip", "--lean") == 0
    assert json.loads(members(tmp_path / "a.zip")["run/metrics.jsonl"].splitlines()[-1]) == {"noise/total/sq_norm": 3.0}


def test_no_directory_of_this_machine_is_named_in_a_packed_file(sweep, packed):
    assert str(sweep.parent) in json.dumps(config_of(next(sweep.glob("*x*"))))
    assert not [name for name, content in members(packed).items() if str(sweep.parent).encode() in content]


def test_directories_that_hold_packed_files_are_read_with_them(packed, sweep, tmp_path, capsys):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "runs.zip").write_bytes(packed.read_bytes())
    (tmp_path / "study" / "other.zip").write_bytes(b"PK no archive")
    messages: list[str] = []
    assert names_in(tmp_path / "study", messages) == names_in(sweep, [])
    (line,) = messages
    assert "other.zip is not a file of packed runs" in line
    assert names_in(tmp_path, []) == names_in(sweep, [])


def test_runs_of_several_directories_keep_their_directories_names(packed, tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name / "run", num_envs=4, num_steps=5, learning_rate=1e-3, goals={5.0: 100})
    assert pack(tmp_path / "a", tmp_path / "b", packed, "--out", tmp_path / "all.zip") == 0
    names = [name for name in members(tmp_path / "all.zip") if name.endswith("config.json")]
    assert names[:2] == ["a/run/config.json", "b/run/config.json"]
    assert "sweep/4x10-lr1-seed0/config.json" in names
    assert "sweep/sweep.yaml" in members(tmp_path / "all.zip")


@pytest.mark.parametrize(
    "name",
    ["../evil/config.json", "/evil/config.json", "evil\\..\\config.json", "a//config.json", "\x1b[2J/config.json"],
)
def test_a_member_whose_name_leaves_the_file_is_left_out_with_one_line(name, packed, tmp_path):
    hostile = write_archive(tmp_path / "a.zip", {**members(packed), name: "{}"})
    messages: list[str] = []
    assert names_in(hostile, messages) == names_in(packed, [])
    (line,) = messages
    assert line.isprintable()
    assert "is not a path within the file" in line


def test_a_member_that_is_too_large_unpacked_is_left_out_unread_with_its_run(packed, tmp_path):
    content = members(packed)
    bomb = b" " * (2 * MAX_RATIO * 2**13)
    content["4x10-lr1-seed0/metrics.jsonl"] = bomb
    messages: list[str] = []
    names = names_in(write_archive(tmp_path / "a.zip", content), messages)
    assert names == [name for name in names_in(packed, []) if name != "4x10-lr1-seed0"]
    (line,) = messages
    assert f"to {len(bomb):,}; it is left out" in line


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_costs_only_its_run(packed, tmp_path):
    file = tmp_path / "a.zip"
    file.write_bytes(packed.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("4x10-lr1-seed0/config.json", "{}")
    messages: list[str] = []
    assert len(names_in(file, messages)) == len(names_in(packed, [])) - 1
    assert len(messages) == 1


@pytest.mark.parametrize(("at", "value", "reason"), [(8, 1, "is encrypted"), (10, 14, "other than deflate")])
def test_an_unusual_archive_entry_costs_only_its_run(at, value, reason, packed, tmp_path):
    raw = bytearray(packed.read_bytes())
    entry = raw.index(b"4x10-lr1-seed0/summary.json", directory_of(raw)) - 46  # in the archive's central directory
    raw[entry + at] = value
    (tmp_path / "a.zip").write_bytes(raw)
    messages: list[str] = []
    assert names_in(tmp_path / "a.zip", messages) == [name for name in names_in(packed, []) if name != "4x10-lr1-seed0"]
    (line,) = messages
    assert reason in line


def test_damage_within_a_packed_file_costs_one_run_and_one_line(packed, tmp_path):
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo("4x10-lr1-seed0/metrics.jsonl")
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    content[middle : middle + 8] = b"\xff" * 8
    (tmp_path / "a.zip").write_bytes(content)
    messages: list[str] = []
    assert len(names_in(tmp_path / "a.zip", messages)) == len(names_in(packed, [])) - 1
    (line,) = messages
    assert "4x10-lr1-seed0" in line
    assert "\n" not in line


def test_members_that_share_bytes_are_refused_as_a_whole(packed, tmp_path, capsys):
    file = write_archive(tmp_path / "a.zip", members(packed))
    raw = bytearray(file.read_bytes())
    first = directory_of(raw)
    second = raw.index(b"PK\x01\x02", first + 4)
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]  # the second member points to the bytes of the first
    file.write_bytes(raw)
    assert main(["fit", str(file)]) == 2
    assert "its members overlap" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0, 10, 1000])
def test_a_truncated_file_or_no_archive_is_reported_in_one_line(cut, packed, tmp_path, capsys):
    (tmp_path / "cut.zip").write_bytes(packed.read_bytes()[:cut])
    for command in ("fit", "report", "compare"):
        assert main([command, str(tmp_path / "cut.zip")]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / 'cut.zip'} is not a file of packed runs" in error
        assert error.count("\n") == 1


def test_an_archive_without_runs_holds_no_runs(tmp_path, capsys):
    write_archive(tmp_path / "a.zip", {"notes.txt": "nothing"})
    assert main(["fit", str(tmp_path / "a.zip")]) == 2
    assert "holds no runs" in capsys.readouterr().err


def test_a_run_zipped_by_hand_is_read_under_the_file_s_name(tmp_path):
    run = write_run(tmp_path / "run", num_envs=4, num_steps=5, learning_rate=1e-3, goals={5.0: 100})
    write_archive(tmp_path / "by_hand.zip", {path.name: path.read_bytes() for path in run.iterdir()})
    assert names_in(tmp_path / "by_hand.zip", []) == ["by_hand"]


def test_a_damaged_run_is_left_out_of_the_file_and_the_exit_code_says_so(tmp_path, capsys):
    for name in ("good", "bad"):
        write_run(tmp_path / "sweep" / name, num_envs=4, num_steps=5, learning_rate=1e-3, goals={5.0: 100})
    damage(tmp_path / "sweep" / "bad")
    assert pack(tmp_path / "sweep", "--out", tmp_path / "a.zip") == 1
    printed = capsys.readouterr()
    assert "bad holds a damaged run" in printed.err
    assert printed.err.count("\n") == 1
    assert names_in(tmp_path / "a.zip", []) == ["good"]
    assert pack(tmp_path / "sweep" / "bad", "--out", tmp_path / "b.zip") == 2
    assert "no run can be read" in capsys.readouterr().err
    assert not (tmp_path / "b.zip").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.zip"], "which runs? name their directories"),
        (["{sweep}"], "which file? name it, as in rlgns pack"),
        (["{sweep}", "--out", "a.tar"], "does not end in .zip"),
        (["{sweep}", "--out", "{packed}"], "exists; choose another --out, or write over it with --overwrite"),
        (["{sweep}", "--out", "{packed}/a.zip"], "cannot be written to"),
        (["{sweep}/nowhere", "--out", "a.zip"], "does not exist"),
        (["{sweep}", "{sweep}", "--out", "a.zip"], "pack them into two files"),
    ],
)
def test_arguments_that_cannot_be_packed_are_refused_in_one_line(
    arguments, message, sweep, packed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = packed.read_bytes()
    assert pack(*(argument.format(sweep=sweep, packed=packed) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert packed.read_bytes() == before
    assert not list(tmp_path.iterdir())


def test_overwriting_needs_a_flag_and_members_are_plain_files(packed, sweep, tmp_path):
    file = tmp_path / "a.zip"
    assert pack(sweep, "--out", file) == 0
    assert pack(sweep, "--out", file, "--overwrite") == 0
    with zipfile.ZipFile(file) as archive:
        modes = {info.external_attr >> 16 for info in archive.infolist()}
    assert modes == {0o644}
    assert not any(stat.S_ISLNK(mode) for mode in modes)
