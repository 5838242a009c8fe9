"""Splits of RAVDESS. By default no actor is in two splits."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mfh.errors import InputError
from mfh.files import read_table
from mfh.tasks.ravdess.names import EMOTIONS
from mfh.tasks.splits import SPLITS
from mfh.values import whole

log = logging.getLogger("mfh")

Clip = Mapping[str, Any]  # a row of the manifest, without its split


def assign(clips: Sequence[Clip], split: str, seed: int) -> dict[str, str]:
    """The split of every clip, by id. Clips that a table does not list are left out.

    Args:
        clips: Clips with id, actor and emotion.
        split: "actors", "random", or the path of a CSV with columns id,split or actor,split.
        seed: Seed of "random".

    Raises:
        InputError: There are too few actors or clips, or the table cannot be used.
    """
    if split == "actors":
        by_actor = split_actors({int(clip["actor"]) for clip in clips})
        chosen = {clip["id"]: by_actor[int(clip["actor"])] for clip in clips}
    elif split == "random":
        chosen = _split_at_random(clips, seed)
    elif Path(split).is_file():
        chosen = _split_by_table(clips, Path(split))
    else:
        raise InputError(f"split is {split!r}; choose actors, random or an existing CSV")
    check(clips, chosen, split)
    return chosen


def check(clips: Sequence[Clip], chosen: Mapping[str, str], split: str) -> None:
    """Refuse an empty split, and warn about emotions that a split lacks.

    Args:
        clips: Clips with id and emotion.
        chosen: Split of each clip, by id.
        split: How the splits were made, for the message.

    Raises:
        InputError: A split is empty.
    """
    for name in SPLITS:
        members = [clip for clip in clips if chosen.get(clip["id"]) == name]
        if not members:
            raise InputError(f"split {split!r} leaves no clip for {name}; each of train, val and test needs some")
        missing = [emotion for emotion in EMOTIONS if emotion not in {clip["emotion"] for clip in members}]
        if missing:
            log.warning("no %s clip is %s", name, " or ".join(missing))


def split_actors(actors: Iterable[int]) -> dict[int, str]:
    """Splits that share no actor and are balanced by sex.

    One male (odd) and one female (even) actor make a pair, in the order of their numbers. The last sixth of the pairs,
    rounded and at least one, is for testing. As many pairs before them are for validation. All other actors are for
    training. All 24 actors give 8, 2 and 2 pairs.

    Args:
        actors: Numbers of the actors.

    Raises:
        InputError: There are fewer than three pairs.

    Example:
        >>> [actor for actor, split in split_actors(range(1, 25)).items() if split == "test"]
        [21, 22, 23, 24]
    """
    ordered = sorted(set(actors))
    pairs = list(zip([a for a in ordered if a % 2], [a for a in ordered if not a % 2], strict=False))
    if len(pairs) < 3:
        raise InputError(
            f"splitting by actor needs three pairs of a male (odd) and a female (even) actor; actors "
            f"{', '.join(map(str, ordered)) or 'none'} make {len(pairs)}: add actors, or choose --split random or a CSV"
        )
    held_out = max(1, round(len(pairs) / 6))
    parts = dict.fromkeys(ordered, "train")
    for name, chosen in (("test", pairs[-held_out:]), ("val", pairs[-2 * held_out : -held_out])):
        parts |= {actor: name for pair in chosen for actor in pair}
    return parts


def check_leaks(manifest: Sequence[Mapping[str, str]], split: str) -> None:
    """Refuse a manifest whose splits share a clip or, with the split "actors", an actor.

    Args:
        manifest: Rows with id, actor and split.
        split: How the splits were made.

    Raises:
        InputError: A clip or actor is shared. The message names it.
    """
    seen: dict[str, str] = {}
    for row in manifest:
        if row["split"] not in SPLITS:
            raise InputError(f"clip {row['id']} has split {row['split']!r}; {', '.join(SPLITS)} were expected")
        for key in [f"clip {row['id']}", *([f"actor {row['actor']}"] if split == "actors" else [])]:
            if key in seen and (seen[key] != row["split"] or key.startswith("clip")):
                raise InputError(f"{key} is in {seen[key]} and again in {row['split']}: the manifest was changed")
            seen[key] = row["split"]


def _split_at_random(clips: Sequence[Clip], seed: int) -> dict[str, str]:
    """A sixth of every emotion's clips for testing and a sixth for validation."""
    random = np.random.default_rng(seed % 2**63)
    chosen: dict[str, str] = {}
    for emotion in EMOTIONS:
        members = sorted(clip["id"] for clip in clips if clip["emotion"] == emotion)
        held_out = max(1, round(len(members) / 6)) if len(members) >= 3 else 0
        order = [members[place] for place in random.permutation(len(members))]
        chosen |= dict.fromkeys(order, "train")
        chosen |= dict.fromkeys(order[:held_out], "test") | dict.fromkeys(order[held_out : 2 * held_out], "val")
    return chosen


def _split_by_table(clips: Sequence[Clip], path: Path) -> dict[str, str]:
    rows = read_table(path, ("split",), "a table with columns id,split or actor,split was expected", foreign=True)
    key = next((name for name in ("id", "actor") if rows and name in rows[0]), None)
    if key is None:
        raise InputError(f"{path} has neither a column 'id' nor 'actor' beside 'split' (or no rows)")
    table: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        name, number = row[key].strip(), whole(row[key].strip())
        if key == "actor" and number is not None:
            name = str(number)
        if row["split"] not in SPLITS:
            raise InputError(f"{path} line {line} has split {row['split']!r}; {', '.join(SPLITS)} were expected")
        if table.setdefault(name, row["split"]) != row["split"]:
            raise InputError(f"{path} puts {key} {name!r} into {table[name]} and, in line {line}, into {row['split']}")
    known = {str(clip[key]) for clip in clips}
    strange = [name for name in table if name not in known]
    if strange:
        log.warning(
            "%s lists %d %ss that are not among the clips, for instance %r", path, len(strange), key, strange[0]
        )
    return {clip["id"]: table[str(clip[key])] for clip in clips if str(clip[key]) in table}
