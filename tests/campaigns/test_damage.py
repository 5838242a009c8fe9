from short_campaign import short_form


def test_a_short_campaign_finds_nothing():
    totals = short_form("damage", "--damages", "10")["all"]
    assert sum(totals.values()) == 10
    assert totals["traceback"] == totals["hang"] == totals["silent wrong result"] == totals["left behind"] == 0
