"""How is foreign text drawn exactly as it is?

The name of a run is a sequence of letters, whatever it holds: neither mathematics nor markup nor control characters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure
from matplotlib.text import Text

from rlgns.runs.foreign_text import printable

LONGEST = 120
"""Characters of one text in a figure at most; a longer text is cut off."""


def make_literal(figure: Figure) -> None:
    """Make every text of a figure literal: no formulas between dollar signs, no unprintable characters, limited length.

    The labels of ticks stay as they are: formatters make them from numbers alone when the figure is drawn.
    """
    numbers = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in numbers:
            text.set_parse_math(False)
            words = printable(text.get_text())
            text.set_text(words if len(words) <= LONGEST else f"{words[: LONGEST - 1]}…")


@contextmanager
def any_letters() -> Iterator[None]:
    """Silence the warnings about letters that the font lacks and about texts that leave no room for the axes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        yield
