"""Names of the three splits. Nothing here needs torch: worker processes of a preparation come by."""

from typing import Literal, get_args

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)
