"""For the API pages: griffe knows the section "Examples:", our docstrings say "Example:"."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Read "Example:" in docstrings as "Examples:", so that doctests are shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
