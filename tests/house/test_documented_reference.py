"""Every command of the reference of the command line does run, in the order of the page."""

from documented import REFERENCE_PAGES, commands, run_page


def test_the_commands_run(tmp_path, monkeypatch):
    ran = run_page(REFERENCE_PAGES[0], tmp_path, monkeypatch)
    assert set(commands(REFERENCE_PAGES[0])) <= set(ran)
    for report in ("small/report.html", "both/report.html", "small/report.md", "paper/report.html"):
        assert (tmp_path / "runs" / report).stat().st_size > 1000
    assert list((tmp_path / "runs/paper/figures").glob("*.pdf"))
