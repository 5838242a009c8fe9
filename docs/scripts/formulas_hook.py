"""Sets the formulas of the pages, LaTeX in fenced blocks called math, as MathML: browsers draw it without the network.

GitHub draws the same blocks by itself.
"""

import re
from typing import Any

from latex2mathml.converter import convert


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every math block by MathML, on one line of its own."""
    return re.sub(r"^```math\n(.*?)^```$", _formula, markdown, flags=re.MULTILINE | re.DOTALL)


def _formula(block: re.Match[str]) -> str:
    return f'<div style="overflow: auto hidden">{" ".join(convert(block[1].strip(), display="block").split())}</div>'
