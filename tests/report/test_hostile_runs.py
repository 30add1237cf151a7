"""Files of runs that somebody else wrote are shown as text; they are neither executed nor taken for markup."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import pytest
from support.synthetic_runs import write_sweep

from rlgns.commands.cli import main
from rlgns.report.comparison_page import write_comparison
from rlgns.report.literal import LONGEST, make_literal
from rlgns.report.markup import Svg, inline_svg, render_page
from rlgns.report.page_figure import PageFigure
from rlgns.report.page_provenance import LARGEST_SWEEP_FILE
from rlgns.report.run_figures import noise_scale_figure
from rlgns.report.style import new_axes
from rlgns.report.sweep_page import render, write_report
from rlgns.runs.directory import FILES, RunDirectory
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.foreign_text import printable
from rlgns.runs.goals import RETURN
from rlgns.study.csv_files import cell, write_csv
from rlgns.study.outcomes import read_outcomes
from rlgns.study.study import fit_study

SCRIPTS = '"><script>alert(2)</script><img src=x onerror=alert(3)>'
PAYLOADS = {
    "scripts": SCRIPTS,
    "ends": "--></text></svg></style></title></textarea>]]><script>alert(1)</script><a href='javascript:alert(1)'>",
    "formulas": r"$\frac$ $\1 \g<0> #0072b2 {{ 7 * 7 }} {% raw %}",
    "no characters": "\x00\x1b[31m\u202e\ud800\uffff",
    "long": "W\n" * 5000,
    "other letters": "画像 🎲",
}
SHAPES = ((4, 10), (16, 10), (64, 10))


class Page(HTMLParser):
    """Elements, attributes and texts of a page, as a browser parses it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.shown: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= set(attrs)

    def handle_data(self, data: str) -> None:
        self.shown.append(data)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.attributes}

    @property
    def links(self) -> set[str | None]:
        return {value for name, value in self.attributes if name.rpartition(":")[2] in {"href", "src", "action"}}


def hostile(content: Any, payload: str) -> Any:
    """The content with the payload in place of every string."""
    match content:
        case dict():
            return {key: hostile(value, payload) for key, value in content.items()}
        case list():
            return [hostile(value, payload) for value in content]
        case str():
            return payload
    return content


def write_hostile_sweep(folder: Path, payload: str) -> Path:
    """Write a sweep in whose files every text is the payload."""
    provenance = {
        "command": "rlgns train", "created": "2024-01-01T00:00:00", "git_commit": "abc", "python": "3",
        "platform": "Linux", "cpu_count": 2, "versions": {"torch": "2"},
    }  # fmt: skip
    for run in write_sweep(folder, shapes=SHAPES, rates=(0.5, 1, 2), seeds=1, noise=0.05):
        config = json.loads((run / "config.json").read_text()) | {"unit": "x", "data": "x", "device": "cpu"}
        config["options"] |= {"wandb": "disabled", "env": "x", "game": "x", "wandb_project": "x", "wandb_entity": "x"}
        config["provenance"] = provenance
        changed = hostile(config, payload)
        changed["options"]["wandb"] = "disabled"
        (run / "config.json").write_text(json.dumps(changed))
    (folder / "sweep.yaml").write_bytes(b"\xff" + payload.encode(errors="replace"))
    return folder


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The pages of a sweep whose texts are plain words."""
    return pages(write_hostile_sweep(tmp_path_factory.mktemp("harmless"), "word"))


def pages(sweep: Path) -> dict[str, Page]:
    study, out = fit_study(read_outcomes([sweep])), sweep / "page"
    first = write_report(study, out, command="rlgns report " + study.task)
    second, _ = write_comparison([study], out, command="rlgns compare " + study.task, defaults={})
    return {path.name: Page(path) for path in (first, second)}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_no_text_of_a_run_becomes_an_element_or_an_attribute_of_a_page(payload, tmp_path, harmless):
    hostile_pages = pages(write_hostile_sweep(tmp_path, payload))
    for name, page in hostile_pages.items():
        assert page.elements <= harmless[name].elements, name
        assert page.names <= harmless[name].names, name
        assert all(str(link).startswith(("#", "https://arxiv.org/")) for link in page.links), name
        assert any(printable(payload)[:20].strip() in text for text in page.shown), name  # it is shown as text
    for figure in tmp_path.glob("page/figures/*.svg"):
        names = {element.tag.rpartition("}")[2] for element in ElementTree.parse(figure).iter()}
        assert not names & {"script", "foreignObject", "a", "img"}, figure.name


def test_a_title_does_not_end_the_attribute_that_holds_it():
    figure, axes = new_axes()
    axes.set_title(SCRIPTS)
    content = PageFigure("name", SCRIPTS, "caption", figure)
    svg = str(inline_svg(content))
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).get("aria-label") == SCRIPTS
    assert SCRIPTS in {element.text for element in ElementTree.fromstring(svg).iter()}


@pytest.mark.parametrize(
    "markup",
    [
        "<svg><script>alert(1)</script></svg>",
        "<svg><g onclick='alert(1)'/></svg>",
        "<svg><use href='javascript:alert(1)'/></svg>",
        "<svg><image href='https://example.org/x.png'/></svg>",
        "<svg><foreignObject/></svg>",
    ],
)
def test_a_page_refuses_markup_that_figures_do_not_have(markup):
    with pytest.raises(ValueError, match="which no page takes in"):
        Svg(ElementTree.fromstring(markup))


def test_no_template_can_mark_a_value_as_safe(monkeypatch):
    monkeypatch.setattr(jinja2, "PackageLoader", lambda name: jinja2.DictLoader({"page": "{{ value | safe }}"}))
    with pytest.raises(jinja2.TemplateAssertionError, match="No filter named 'safe'"):
        render_page("page", value="<b>")


def test_the_figure_of_a_run_draws_its_title_literally(tmp_path):
    records = [{"progress/examples": 10 * k, RETURN: float(k)} for k in range(1, 5)]
    for payload in PAYLOADS.values():
        paths = [tmp_path / "figure.svg", tmp_path / "figure.png"]
        noise_scale_figure(records, [payload], title=payload, unit=payload, measure=RETURN, batch_size=10, paths=paths)
        assert not {e.tag.rpartition("}")[2] for e in ElementTree.parse(paths[0]).iter()} & {"script", "a", "image"}


def test_texts_of_a_figure_are_literal_and_limited_in_length():
    figure, axes = new_axes()
    axes.set_xlabel("$x^2$")
    axes.set_ylabel("y" * 1000)
    make_literal(figure)
    assert axes.xaxis.label.get_parse_math() is False
    assert len(axes.get_ylabel()) == LONGEST


def test_a_sweep_file_that_is_a_link_or_huge_is_not_copied_into_the_page(tmp_path):
    write_sweep(tmp_path / "sweep", shapes=SHAPES, rates=(1,), seeds=1, noise=0.05)
    secret, file = tmp_path / "secret", tmp_path / "sweep" / "sweep.yaml"
    secret.write_text("machine example.org password 12345")
    study = fit_study(read_outcomes([tmp_path / "sweep"]))
    file.symlink_to(secret)
    assert "12345" not in render(study, [], command="")
    file.unlink()
    file.write_text("# 12345\n" + "#" * LARGEST_SWEEP_FILE)
    assert "12345" not in render(study, [], command="")
    file.write_text("# 12345")
    assert "12345" in render(study, [], command="")


@pytest.mark.parametrize("value", [[], 5, "x", None, {"versions": 5, "created": 7, "platform": [1], "command": {}}])
def test_provenance_of_another_type_leaves_its_lines_out(value, tmp_path):
    runs = write_sweep(tmp_path, shapes=SHAPES, rates=(1,), seeds=1, noise=0.05)
    for place, run in enumerate(runs):
        config = json.loads((run / "config.json").read_text())
        if place:
            config["provenance"] = value
        (run / "config.json").write_text(json.dumps(config))
    assert "How it was made" in render(fit_study(read_outcomes([tmp_path])), [], command="")


def test_names_of_runs_do_not_control_the_terminal(tmp_path, capsys):
    title = "\x1b]0;owned\x07\x1b[2J\u202e\ud800"
    write_hostile_sweep(tmp_path / "sweep", title)
    assert main(["fit", str(tmp_path / "sweep")]) == 0
    assert main(["report", str(tmp_path / "sweep"), "--log-to-wandb=disabled"]) == 0
    assert main(["compare", str(tmp_path / "sweep"), f"--out={tmp_path / 'compared'}"]) == 0

    def refuse() -> int:
        raise ValueError(f"no such {title}\n2")

    assert exit_code_of(refuse) == 2
    shown = capsys.readouterr()
    assert "]0;owned" in shown.out
    assert shown.err.startswith("error: no such")
    assert shown.err.count("\n") == 1
    assert not set(shown.out + shown.err) & {"\x1b", "\x07", "\u202e"}


def test_keys_and_passwords_are_not_passed_on_with_a_page(tmp_path):
    runs = write_sweep(tmp_path, shapes=SHAPES, rates=(1,), seeds=1, noise=0.05)
    (tmp_path / "sweep.yaml").write_text("command: [env, WANDB_API_KEY=k3y, rlgns]\napi_key: 'k3y'\nseed: {value: 5}\n")
    config = json.loads((runs[0] / "config.json").read_text())
    config["provenance"] = {"command": "tool --password k3y --hf-token=k3y --sequence-length 20"}
    (runs[0] / "config.json").write_text(json.dumps(config))
    html = render(fit_study(read_outcomes([tmp_path])), [], command="")
    assert "k3y" not in html
    assert "--sequence-length 20" in html
    assert "seed: {value: 5}" in html


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("resume", [True, False])
def test_no_run_writes_through_a_link_in_its_directory(name, resume, tmp_path):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("{}")
    run.mkdir()
    if resume:
        (run / "config.json").write_text("{}")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    words = "already holds a run" if not resume and name in {"metrics.jsonl", "checkpoint.pt"} else "is a link"
    with pytest.raises(ValueError, match=words):
        RunDirectory(run, resume=resume)
    assert precious.read_text() == "{}"


RUNS_CODE = (
    r"\bpickle\.load|\bmarshal\.|\bshelve\.|allow_pickle=True|weights_only=False|"
    r"\byaml\.(unsafe_load|full_load|load\((?![^)]*Loader=_Loader))|UnsafeLoader|FullLoader|yaml\.Loader|"
    r"shell=True|os\.system|os\.popen|\bmktemp\(|(?<![\w.])(eval|exec)\("
)


def test_nothing_in_the_source_reads_files_in_a_way_that_runs_what_they_hold():
    root = Path(__file__).parents[2]
    dangerous = {
        f"{path.name}: {match[0]}"
        for room in ("rlgns", "agents", "scripts")
        for path in (root / room).rglob("*.py")
        for match in re.finditer(RUNS_CODE, path.read_text())
    }
    assert not dangerous
    loads = [
        path.name for path in (root / "rlgns").rglob("*.py") if re.search(r"(?<!`)torch\.load\(", path.read_text())
    ]
    assert loads == ["checkpoints.py"]


# --- CSV


FORMULAS = ["=1+1", "+1-cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1+1", "=\ud800"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_run_has_an_apostrophe_before_it(text, tmp_path):
    write_csv(tmp_path / "table.csv", [{"name": text, "=key": 1}])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        heading, row = csv.reader(file)
    assert row[0] == "'" + text.replace("\ud800", "?")
    assert heading == ["name", "'=key"]


@pytest.mark.parametrize("value", [-1, -0.5, 1e-9, True, None, "-0.5", "+3", "1e-5", "Pong", "num_envs=4", "a-b", ""])
def test_numbers_and_plain_words_stand_in_a_csv_as_they_are(value):
    assert cell(value) == value


def test_the_tables_of_report_compare_and_fit_hold_no_formulas(tmp_path):
    sweep = write_hostile_sweep(tmp_path, "=HYPERLINK(1)")
    pages(sweep)
    assert main(["fit", str(sweep), f"--csv={tmp_path / 'fit.csv'}"]) == 0
    tables = [tmp_path / "fit.csv", tmp_path / "page/points.csv", tmp_path / "page/comparison.csv"]
    cells = [text for path in tables for row in csv.reader(path.read_text().splitlines()) for text in row]
    assert "'=HYPERLINK(1)" in cells
    assert not [text for text in cells if text.startswith(("=", "@", "+", "\t", "\r"))]


def test_every_csv_file_of_the_project_is_written_by_one_module():
    root = Path(__file__).parents[2]
    sources = [path for room in ("rlgns", "agents", "scripts") for path in (root / room).rglob("*.py")]
    writers = {path.name for path in sources if "csv.writer" in (text := path.read_text()) or "DictWriter" in text}
    assert writers == {"csv_files.py"}
