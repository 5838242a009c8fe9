"""The authors' pre-processed layout: aud_features/*.npy, vid_features/*.jpg, data_file/spa_{dl,val,test}.csv."""

import csv
import io
from pathlib import Path

from mfh import files
from mfh.errors import InputError
from mfh.tasks.media import MediaFile
from mfh.tasks.ravdess import names
from mfh.tasks.ravdess.clips import FACTS, Clip, Found, skip
from mfh.tasks.splits import SPLITS
from mfh.values import whole

_TABLES: dict[str, str] = dict(zip(SPLITS, ("spa_dl.csv", "spa_val.csv", "spa_test.csv"), strict=True))


def find_features(source: Path) -> Found:
    """Clips of the authors' folder. Each line of data_file/spa_{dl,val,test}.csv names an array, a picture and a class.

    Args:
        source: The authors' folder.

    Raises:
        InputError: A table is missing, or one of its lines cannot be read.
    """
    lines: list[tuple[str, str, str, int]] = []
    for split, table in _TABLES.items():
        lines += [(split, *line) for line in _read_table(source / "data_file" / table)]
    first = min(label for *_, label in lines)
    last = max(label for *_, label in lines)
    if last - min(first, 1) >= len(names.EMOTIONS) or first < 0:
        raise InputError(f"labels in {source / 'data_file'} go from {first} to {last}; 0 to 7 or 1 to 8 were expected")
    shift = 1 if last == len(names.EMOTIONS) else 0
    clips, skipped, seen = [], [], set()
    for split, audio, image, label in lines:
        array, picture = _file(source / "aud_features", audio), _file(source / "vid_features", image)
        identity = Path(array.name).stem
        missing = [file for file in (array, picture) if not file.path.is_file()]
        if missing:
            skipped += [skip(file, "missing") for file in missing]
        elif identity in seen:
            skipped.append(skip(array, "duplicate"))
        else:
            seen.add(identity)
            what = names.parse(identity)
            known = {name: getattr(what, name) if what else "" for name in FACTS[1:]}
            facts = {"id": identity, **known, "emotion": names.EMOTIONS[label - shift], "split": split}
            clips.append(Clip(facts, (picture,), (array,)))
    if not clips:
        raise InputError(
            f"none of the {len(lines)} pairs in {source / 'data_file'} is in aud_features and vid_features"
        )
    return Found(sorted(clips, key=lambda clip: str(clip.facts["id"])), skipped)


def _file(folder: Path, name: str) -> MediaFile:
    """The file that a table names, wherever the authors kept it."""
    path = folder / name.replace("\\", "/").rpartition("/")[2]
    return MediaFile.of(path) if path.is_file() else MediaFile(path)


def _read_table(path: Path) -> list[tuple[str, str, int]]:
    try:
        lines_of = csv.reader(io.StringIO(files.read_text(path), newline=""))
        rows = [row for row in lines_of if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise InputError(
            f"no file {path}; the authors' folder has data_file/spa_dl.csv, spa_val.csv, spa_test.csv"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a readable CSV table ({error})") from None
    lines = []
    for number, row in enumerate(rows, start=1):
        text = row[2].strip() if len(row) == 3 else ""
        label = whole(text.removeprefix("-"))
        if label is not None:
            lines.append((row[0].strip(), row[1].strip(), -label if text.startswith("-") else label))
        elif number > 1 or len(row) != 3:  # the first line may be a heading
            raise InputError(
                f"{path} line {number} is {','.join(row)[:80]!r}; audio file, image file, label was expected"
            )
    if not lines:
        raise InputError(f"{path} lists no pair; audio file, image file, label was expected in each line")
    return lines
