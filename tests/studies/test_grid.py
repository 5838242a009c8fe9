import pytest

from mfh.errors import InputError
from mfh.studies.grid import ARMS, CONTROLS, UNMASKED, Cell, cells


def test_the_grid_has_every_arm_at_every_ratio_and_score_that_applies():
    grid = cells([*ARMS, *CONTROLS], [0.5, 0.25], ["distance", "agreement"], ["a"])
    assert len(grid) == len(set(grid)) == 12 + 2 + 2 * 4
    assert [cell.ratio for cell in grid if cell.arm == "random"] == [0.25, 0.5]
    assert {(cell.score, cell.ratio) for cell in grid if cell.arm == "general"} == {
        (score, ratio) for score in ("distance", "agreement") for ratio in (0.25, 0.5)
    }


def test_masks_are_compared_with_the_teacher_they_mask():
    for cell in cells([*ARMS, *CONTROLS], [0.5], ["distance"], ["a"]):
        if cell.arm in UNMASKED:
            assert cell.teacher == {"aligned": "aligned", "regular": "pretrained"}[UNMASKED[cell.arm]]
    assert Cell("no-kd").teacher is None


def test_only_masked_arms_are_repeated_over_layers():
    grid = cells(ARMS, [0.5], ["distance"], ["a", "b"])
    assert [cell.layer for cell in grid if cell.arm in ("general", "soft")] == ["a", "b", "a", "b"]
    assert len([cell for cell in grid if cell.arm in ("no-kd", "regular", "aligned")]) == 3


@pytest.mark.parametrize(
    ("arms", "ratios", "scores", "said"),
    [
        (["genral"], [0.5], ["distance"], "'genral'.*'general'"),
        ([], [0.5], ["distance"], "no arm"),
        (["general"], [1.0], ["distance"], "ratio is 1.0"),
        (["general"], [-0.1], ["distance"], "ratio is -0.1"),
        (["general"], [], ["distance"], "'general' needs a ratio"),
        (["general"], [0.5], ["probe"], "'probe'"),
    ],
)
def test_bad_input_is_named(arms, ratios, scores, said):
    with pytest.raises(InputError, match=said):
        cells(arms, ratios, scores, ["a"])
