"""How does foreign text get into a page without becoming markup? Everything that a page shows passes through here.

Names, units, commands and warnings come from the records of runs, which anybody may have written. `render_page` escapes
every value that a template shows; no template may say that one is safe. The only markup that enters a page from outside
its templates is a figure, and `inline_svg` alone makes it: the SVG is parsed, checked against the elements and
attributes that figures consist of, and written anew by a serialiser that escapes texts and attributes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

import jinja2

from rlgns.report.sweep_figures import INK, SweepFigure
from rlgns.runs.foreign_text import printable

ON_DARK = {
    INK: "#e6e8eb",
    "#0072b2": "#56b4e9",
    "#d55e00": "#ff9a4d",
    "#009e73": "#2fd6a5",
    "#cc79a7": "#f0a6cc",
    "#8c6d1f": "#f0e442",
    "#5e3c99": "#b39ddb",
    "#7a1c2e": "#ff7a85",
    "#6b7280": "#a9b0ba",
}
"""What the figures' colours become on a dark ground."""

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

ELEMENTS = frozenset({"svg", "defs", "style", "g", "path", "use", "text", "tspan", "rect", "clipPath", "image"})
"""What matplotlib draws with; none of them runs code or loads anything unless an attribute says so."""


class Svg:
    """A figure's markup, safe to stand in a page as it is; made by `inline_svg` alone."""

    __slots__ = ("_text",)

    def __init__(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            _check(element)
        self._text = ElementTree.tostring(root, encoding="unicode")

    def __html__(self) -> str:
        """The markup, for templates that escape all else."""
        return self._text

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as the page has it."""

    name: str
    title: str
    caption: str
    svg: Svg


def render_page(template: str, **content: object) -> str:
    """The page that a template of this package and its content make; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlgns.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=_shown,
    )  # fmt: skip
    for name in ("safe", "xmlattr", "urlize", "tojson"):  # a template that marks a value as safe does not compile
        del environment.filters[name]
    return environment.get_template(template).render(**content)


def drawing_of(figure: SweepFigure) -> Drawing:
    """The figure as a page has it."""
    return Drawing(figure.name, figure.title, figure.caption, inline_svg(figure))


def inline_svg(figure: SweepFigure) -> Svg:
    """The figure as SVG in which colours are variables of the page's style sheet.

    Raises:
        ValueError: If the SVG holds what no figure of this project consists of.

    """
    root = ElementTree.fromstring(figure.svg())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": printable(figure.title)}
    colours = {colour: f"var({variable(colour)})" for colour in (*ON_DARK, *figure.colours)}
    pattern = re.compile("|".join(map(re.escape, colours)))
    for element in root.iter():
        if style := element.get("style"):
            element.set("style", pattern.sub(lambda match: colours[match[0]], style))
        element.tag = _without(SVG, element.tag)
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.set(_without(XLINK, name, "xlink:"), element.attrib.pop(name))
    root.attrib |= {"xmlns": SVG, "xmlns:xlink": XLINK}
    return Svg(root)


def variable(colour: str) -> str:
    """The style sheet's name of a colour."""
    return f"--c{colour.removeprefix('#')}"


def _shown(value: object) -> object:
    """A value as a page shows it: text without characters that are no text; the rest as it is."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _check(element: ElementTree.Element) -> None:
    if element.tag not in ELEMENTS:
        raise ValueError(f"a figure holds the element {element.tag!r}, which no page takes in")
    for name, value in element.attrib.items():
        is_link = name.rpartition(":")[2] == "href"
        if name.lower().startswith("on") or (is_link and not value.startswith(("#", "data:image/png;base64,"))):
            raise ValueError(f"a figure holds the attribute {name}={value[:40]!r}, which no page takes in")


def _without(namespace: str, name: str, prefix: str = "") -> str:
    return prefix + name.removeprefix(f"{{{namespace}}}") if name.startswith(f"{{{namespace}}}") else name
