"""Names of the three splits. Nothing here needs torch: worker processes of a preparation come by."""

from typing import Literal, get_args

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

#: What another random seed changes: the data, which pairs of one data set are in which split, or only the training.
Seeds = Literal["redrawn", "resplit", "fixed"]

SEEDS: tuple[Seeds, ...] = get_args(Seeds)
