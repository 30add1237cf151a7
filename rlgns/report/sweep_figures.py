"""Which figures does a sweep have? All of them are made from its study alone."""

from __future__ import annotations

import matplotlib as mpl

from rlgns.report.adaptive_figure import adaptive
from rlgns.report.cost_figures import clock, efficiency, pareto
from rlgns.report.noise_figures import critical
from rlgns.report.page_figure import PageFigure
from rlgns.report.style import STYLE
from rlgns.report.training_figures import returns, updates
from rlgns.report.tuning_figures import rates, shapes
from rlgns.study.study import Study

FIGURE_FUNCTIONS = (pareto, critical, efficiency, returns, updates, rates, clock, shapes, adaptive)
"""Functions that draw the figures, in the order in which they are read; each gives None where there is nothing to draw.
"""


def figures_of(study: Study) -> list[PageFigure]:
    """The figures that the study has data for, in the order in which they are read.

    Raises:
        ValueError: If the fits of the study are not by batch size.
    """
    if any(fit.by != "batch_size" for fit in study.fits):
        raise ValueError("figures need a study whose fits are by batch_size")
    with mpl.rc_context(STYLE):
        figures = [draw(study) for draw in FIGURE_FUNCTIONS]
    return [figure for figure in figures if figure]
