"""Print README.md with absolute links, for a package page, where relative ones lead nowhere.

    python scripts/absolute_links.py https://github.com/OWNER/mfh v0.2.0 > README.package.md

Pictures link to the raw file, everything else to the page of the file at that tag.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def absolute(text: str, repository: str, tag: str) -> str:
    """The text with every relative link made absolute."""

    def link(target: str, kind: str) -> str:
        return target if re.match(r"[a-z]+:|#", target) else f"{repository.rstrip('/')}/{kind}/{tag}/{target}"

    text = re.sub(r'src="([^"]+)"', lambda found: f'src="{link(found[1], "raw")}"', text)
    return re.sub(r"\]\(([^)\s]+)\)", lambda found: f"]({link(found[1], 'blob')})", text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("give the address of the repository and the tag of the release")
    sys.stdout.write(absolute(README.read_text(encoding="utf-8"), *sys.argv[1:]))
