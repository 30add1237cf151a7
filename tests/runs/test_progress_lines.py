"""The live line and the table of a sweep at terminals of any width."""

import io
import re

import pytest
from rich.console import Console

from rlgns.runs import progress
from rlgns.runs.progress import ProgressDisplay, Status, SweepDisplay, SweepRow

LONG = Status(90_000, 2345.0, "return 12.3", "policy 529 [324, 1,469], value 12 [8, 17], total 100 [50, 200]")


@pytest.fixture
def screen(monkeypatch):
    """Text of a terminal of a width that the test sets."""
    out = io.StringIO()

    def at(width):
        make = lambda **_: Console(file=out, force_terminal=True, width=width, color_system=None)  # noqa: E731
        monkeypatch.setattr(progress, "Console", make)
        return out

    return at


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_line_keeps_share_and_time_left_and_stays_one_line(screen, width):
    out = screen(width)
    display = ProgressDisplay(300_000, "transitions")
    with display:
        display.show(LONG)
        display._bar.refresh()
    line = re.split(r"[\r\n]|\x1b\[2K", out.getvalue().rstrip("\x1b[?25h").rstrip())[-1]
    assert " 30% " in line
    assert re.search(r"-:--:--|\d:\d\d:\d\d", line)
    assert "2,345 transitions/s" in line
    assert len(line) <= width


def test_the_table_of_a_sweep_shows_the_time_that_is_left_in_all(screen):
    out = screen(80)
    display = SweepDisplay()
    row = SweepRow("seed=0", 1000, 250.0, 3.5, 64.0)
    with display:
        display.show([row], {"running": 1, "waiting": 3}, 3700.0)
    assert "1 running · 3 waiting · at most 1:01:40 left in all" in out.getvalue()
    assert "0:01:04" in out.getvalue()
