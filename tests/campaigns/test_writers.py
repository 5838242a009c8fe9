from short_campaign import short_form


def test_a_short_campaign_finds_nothing():
    totals = short_form("writers", "--pairs", "8", "--seconds", "20")["all"]
    assert sum(totals.values()) > 2  # on a slow machine only a few trials fit
    assert totals["traceback"] == totals["hang"] == totals["silent wrong result"] == totals["left behind"] == 0
