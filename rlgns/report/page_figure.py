"""What is a figure of a page, and how is it written as a file and as part of the page?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from rlgns.report.literal import any_letters, make_literal
from rlgns.runs.files import replacing

DPI = 150
"""Pixels per inch of a PNG file."""

NO_DATE = {"Date": None}
"""Metadata that keep the date out of an SVG file, so that the same figure is the same file."""


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure with the words that a page shows beside it.

    Attributes:
        name: Name of its files, without an ending.
        title: What it shows.
        caption: How to read it.
        figure: The drawing.
        colours: Colours of batch sizes in it, which a page replaces by lighter ones on a dark background.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    colours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        make_literal(self.figure)

    def save(self, path: Path) -> None:
        """Write the figure in the format that the path's ending names; the same figure gives the same file."""
        with mpl.rc_context({"svg.hashsalt": self.name}), any_letters(), replacing(path) as file:
            self.figure.savefig(file, dpi=DPI, metadata=NO_DATE if path.suffix == ".svg" else {})

    def svg(self) -> str:
        """The figure's <svg> element for a page, with a transparent background and with texts as text."""
        file = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}), any_letters():
            self.figure.savefig(file, format="svg", transparent=True, metadata=NO_DATE)
        text = file.getvalue()
        return text[text.index("<svg") :]


def write_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Write a figure to files, with every text in it taken literally.

    Args:
        figure: The drawing.
        paths: Files to write; their endings choose the formats.

    Raises:
        OSError: If a file cannot be written.
    """
    make_literal(figure)
    with any_letters():
        for path in paths:
            with replacing(path) as file:
                figure.savefig(file, dpi=DPI)
            figure.set_layout_engine("none")  # the first file has settled the layout, which takes as long as drawing
