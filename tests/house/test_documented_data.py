"""Commands on RAVDESS and VGGSound do run as the documentation shows them, on generated clips."""

import pytest

from documented import ROOT, commands, name_of, run_page

PAGES = [ROOT / f"docs/{name}.md" for name in ("coming-from-the-paper-code", "ravdess", "vggsound")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_run(page, tmp_path, monkeypatch):
    ran = run_page(page, tmp_path, monkeypatch)
    assert set(commands(page)) <= set(ran)
