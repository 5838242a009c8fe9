"""Sets the formulas of the pages as MathML: browsers draw it without the network.

Formulas are LaTeX, in fenced blocks called math or between $` and `$ in a line. GitHub draws both by itself.
"""

import re
from typing import Any

from latex2mathml.converter import convert


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every formula by MathML. (In a span: a line that begins with <math> would be a block of its own.)"""
    markdown = re.sub(r"^```math\n(.*?)^```$", _block, markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\$`([^`]+)`\$", lambda found: f"<span>{_mathml(found[1], 'inline')}</span>", markdown)


def _block(found: re.Match[str]) -> str:
    return f'<div style="overflow: auto hidden">{_mathml(found[1], "block")}</div>'


def _mathml(latex: str, display: str) -> str:
    return " ".join(convert(latex.strip(), display=display).split())
