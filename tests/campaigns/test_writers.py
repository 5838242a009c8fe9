from short_campaign import short_form


def test_a_short_campaign_finds_nothing():
    totals = short_form("writers", "--pairs", "3")["all"]
    assert sum(totals.values()) == 9  # both commands of a pair, and what they leave
    assert totals["traceback"] == totals["hang"] == totals["silent wrong result"] == totals["left behind"] == 0
