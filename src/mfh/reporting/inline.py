"""Figures as part of an HTML page: SVG whose ink and colours follow the page, light or dark."""

import re
from collections.abc import Iterable
from xml.etree import ElementTree

from mfh.figures.style import FAINT, GRID, INK

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
#: Colours that are parts of the page; arms and roles keep theirs, lighter on a dark page.
_PAGE = {INK: "currentColor", "#000000": "currentColor", "#ffffff": "var(--page)", FAINT: "var(--faint)"}
_PAGE[GRID] = "var(--line)"
_COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}(?=;|$)")


def inline_svg(svg: bytes, prefix: str, *, label: str, kind: str) -> str:
    """A figure's SVG as an element of a page.

    Args:
        svg: Content of the SVG file, as `mfh.figures.style.figure_bytes` makes it.
        prefix: Beginning of all names within the element; every element of a page has another.
        label: Alternative text.
        kind: Class of the element.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 (made by matplotlib a moment ago, which escapes all text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        names = dict(element.attrib)
        element.attrib.clear()
        for name, value in names.items():
            if name == "id":
                value = prefix + value
            elif name == _LINK:
                name, value = "href", value.replace("#", f"#{prefix}", 1) if value.startswith("#") else value
            elif name == "clip-path":
                value = value.replace("url(#", f"url(#{prefix}")
            elif name == "style":
                value = _COLOUR.sub(lambda found: _PAGE.get(found[0], f"var(--c{found[0][1:]})"), value)
            element.set(name, value)
    width = float(root.attrib.pop("width").removesuffix("pt")) * 96 / 72
    for name in ("height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": f"chart {kind}", "role": "img", "aria-label": label, "style": f"max-width: {width:.0f}px"}
    return ElementTree.tostring(root, encoding="unicode")


def colour_styles(pages: Iterable[str]) -> str:
    """The style sheet of all colours that elements of a page use, in light and on a dark screen.

    Args:
        pages: What `inline_svg` returned.
    """
    used = sorted({colour for page in pages for colour in re.findall(r"var\(--c([0-9a-f]{6})\)", page)})
    if not used:
        return ""
    light = " ".join(f"--c{colour}: #{colour};" for colour in used)
    dark = " ".join(f"--c{colour}: {lighter(colour)};" for colour in used)
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def lighter(colour: str) -> str:
    """A colour for a dark page: mixed with white, so that it keeps its hue.

    Args:
        colour: Six hexadecimal digits.

    Example:
        >>> lighter("0072b2")
        '#66aad1'
    """
    parts = [int(colour[place : place + 2], 16) for place in (0, 2, 4)]
    return "#" + "".join(f"{round(part + 0.4 * (255 - part)):02x}" for part in parts)
