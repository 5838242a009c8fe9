from short_campaign import short_form


def test_a_short_campaign_finds_nothing():
    totals = short_form("kills", "--kills", "4")["all"]
    assert sum(totals.values()) == 4
    assert totals["traceback"] == totals["hang"] == totals["silent wrong result"] == totals["left behind"] == 0
