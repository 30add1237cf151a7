"""How does foreign text get into a page without becoming markup? Everything that a page shows passes through here.

Names, units, commands and warnings come from the records of runs, which anybody may have written. `render_page` escapes
every value that a template shows; no template may mark a value as safe. The only markup that enters a page from outside
its templates is a figure, and only `inline_svg` makes it: the SVG is parsed, checked against the elements and
attributes that figures consist of, and written anew by a serialiser that escapes texts and attributes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

import jinja2

from rlgns.report.page_figure import PageFigure
from rlgns.report.style import DARK_COLOURS
from rlgns.runs.foreign_text import printable

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

ELEMENTS = frozenset({"svg", "defs", "style", "g", "path", "use", "text", "tspan", "rect", "clipPath", "image"})
"""Elements that matplotlib draws with; they run code or load files only where an attribute says so."""


class Svg:
    """The markup of a figure, which may stand in a page as it is; only `inline_svg` makes it."""

    __slots__ = ("_text",)

    def __init__(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            _check(element)
        self._text = ElementTree.tostring(root, encoding="unicode")

    def __html__(self) -> str:
        """The markup, for templates that escape everything else."""
        return self._text

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as a template shows it.

    Attributes:
        name: Identifier of the figure on its page.
        title: Heading.
        caption: How to read the figure.
        svg: The drawing.
    """

    name: str
    title: str
    caption: str
    svg: Svg


def render_page(template: str, **content: object) -> str:
    """The page of a template of this package, filled with its content; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlgns.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=_shown,
    )  # fmt: skip
    for name in ("safe", "xmlattr", "urlize", "tojson"):  # a template that marks a value as safe does not compile
        del environment.filters[name]
    return environment.get_template(template).render(**content)


def drawing_of(figure: PageFigure) -> Drawing:
    """The figure as a template shows it."""
    return Drawing(figure.name, figure.title, figure.caption, inline_svg(figure))


def inline_svg(figure: PageFigure) -> Svg:
    """The figure as an <svg> element in which colours are variables of the page's style sheet.

    Raises:
        ValueError: If the SVG holds an element or attribute that no figure of this project has.
    """
    root = ElementTree.fromstring(figure.svg())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": printable(figure.title)}
    colours = {colour: f"var({variable(colour)})" for colour in (*DARK_COLOURS, *figure.colours)}
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
    """Name of the variable that stands for a colour in the style sheet."""
    return f"--c{colour.removeprefix('#')}"


def _shown(value: object) -> object:
    """A value as a page shows it: text without unprintable characters, everything else unchanged."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _check(element: ElementTree.Element) -> None:
    """Refuse elements that figures do not have, scripts in attributes, and links that leave the page."""
    if element.tag not in ELEMENTS:
        raise ValueError(f"a figure holds the element {element.tag!r}, which no page takes in")
    for name, value in element.attrib.items():
        is_link = name.rpartition(":")[2] == "href"
        if name.lower().startswith("on") or (is_link and not value.startswith(("#", "data:image/png;base64,"))):
            raise ValueError(f"a figure holds the attribute {name}={value[:40]!r}, which no page takes in")


def _without(namespace: str, name: str, prefix: str = "") -> str:
    """The name with `prefix` in place of its namespace, if it is of that namespace."""
    return prefix + name.removeprefix(f"{{{namespace}}}") if name.startswith(f"{{{namespace}}}") else name
