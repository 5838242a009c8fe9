"""Commands on RAVDESS and VGGSound do run as the documentation shows them, on generated clips."""

import pytest

from documented import DATA_PAGES, commands, name_of, run_page


@pytest.mark.parametrize("page", DATA_PAGES, ids=name_of)
def test_the_commands_run(page, tmp_path, monkeypatch):
    ran = run_page(page, tmp_path, monkeypatch)
    assert set(commands(page)) <= set(ran)
