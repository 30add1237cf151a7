"""Pages laid out by a browser: nothing is wider than the screen, and text is legible on light and dark backgrounds."""

import re
from pathlib import Path

import pytest
from support.browser import evaluate, needs_browser
from support.synthetic_runs import write_sweep

from rlgns.commands.cli import main

pytestmark = [needs_browser, pytest.mark.slow]

WIDTHS = (400, 1280)

OVERFLOW = """
const page = frame.contentDocument, width = page.documentElement.clientWidth;
const inside = element => element.closest(".table, pre, svg") !== null;
return {
  scroll: page.scrollingElement.scrollWidth,
  width,
  wide: [...page.body.querySelectorAll("*")].filter(e => !inside(e) && e.getBoundingClientRect().right > width + 1)
    .map(e => e.tagName + "." + e.className).slice(0, 5),
};
"""

COLOURS = """
const page = frame.contentDocument, view = frame.contentWindow;
const ground = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = view.getComputedStyle(e).backgroundColor;
    if (!/^rgba\\(.*, 0\\)$/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
const texts = [...page.body.querySelectorAll("h1, h2, p, th, td, dt, pre, summary, figcaption, svg text")];
return texts.map(e => [e.tagName, view.getComputedStyle(e)[e.tagName == "text" ? "fill" : "color"], ground(e)]);
"""

RATIO = """
const page = frame.contentDocument;
const cells = [...page.querySelectorAll("th")].filter(cell => cell.textContent.includes("/ B_crit"));
return cells.map(cell => [cell.getBoundingClientRect().right, cell.closest(".table").getBoundingClientRect().right]);
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The page of a sweep with many warnings, of one without a recommendation, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    shapes = tuple((2**n, 128) for n in range(2, 10))
    write_sweep(folder / "runs", seeds=1, rates=(1, 2), shapes=shapes, task="PPO on ALE/MontezumaRevenge-v5")
    write_sweep(folder / "single", shapes=((16, 5),), noise_scale=None)
    assert main(["report", str(folder / "runs"), f"--out={folder / 'page'}"]) == 0
    assert main(["report", str(folder / "single"), f"--out={folder / 'none'}"]) == 0
    assert main(["compare", str(folder / "runs"), f"--out={folder / 'comparison'}"]) == 0
    return {
        "sweep": folder / "page" / "report.html",
        "no recommendation": folder / "none" / "report.html",
        "comparison": folder / "comparison" / "comparison.html",
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["sweep", "no recommendation", "comparison"])
def test_no_page_is_wider_than_the_screen(pages, name, width, tmp_path):
    found = evaluate(pages[name], OVERFLOW, tmp_path, width=width)
    assert found["width"] == width
    assert found["wide"] == []
    assert found["scroll"] <= width


def luminance(colour: str) -> float:
    red, green, blue = (int(value) / 255 for value in re.findall(r"\d+", colour)[:3])
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["sweep", "no recommendation", "comparison"])
def test_every_text_contrasts_with_its_background(pages, name, dark, tmp_path):
    """WCAG 2.1 asks for 4.5 : 1 in text."""
    texts = evaluate(pages[name], COLOURS, tmp_path, width=1280, dark=dark)
    assert len(texts) > 20
    assert (luminance(texts[0][2]) < 0.1) == dark
    for tag, colour, ground in texts:
        high, low = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (tag, colour, ground)


def test_the_ratio_of_a_comparison_is_visible_without_scrolling(pages, tmp_path):
    cells = evaluate(pages["comparison"], RATIO, tmp_path, width=1280)
    assert cells
    for cell, table in cells:
        assert 0 < cell <= table <= 1280


def test_the_check_finds_an_element_that_is_too_wide(pages, tmp_path):
    """A control: a page that does scroll sideways is recognised as such."""
    wide = tmp_path / "wide.html"
    wide.write_text(pages["sweep"].read_text().replace("<h1>", '<div class="x" style="width: 700px">wide</div><h1>'))
    found = evaluate(wide, OVERFLOW, tmp_path, width=400)
    assert found["wide"] == ["DIV.x"]
    assert found["scroll"] > 400
