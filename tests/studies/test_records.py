import json
from dataclasses import dataclass
from typing import Literal, TypedDict

import pytest

from mfh.errors import InputError
from mfh.studies import records


@dataclass(frozen=True)
class Point:
    x: float
    names: tuple[str, ...] = ()


class Kind(TypedDict, total=False):
    count: int
    level: float | None
    side: Literal["left", "right"]
    point: Point
    flags: list[bool]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"count": "two"}, 'count is "two"; a whole number was expected'),
        ({"count": True}, "count is true; a whole number"),
        ({"count": 10**30}, "count is 1000"),
        ({"level": float("nan")}, "level is NaN; a finite number"),
        ({"level": [1]}, r"level is \[1\]; a finite number"),
        ({"side": "up"}, "side is \"up\"; 'left' or 'right'"),
        ({"side": []}, r"side is \[\]; 'left' or 'right'"),
        ({"point": 3}, "point is 3; an object"),
        ({"point": {}}, "point.x is missing"),
        ({"point": {"x": 1, "y": 2}}, "point.y is not known"),
        ({"point": {"x": 1, "names": [5]}}, r"point.names\[0\] is 5; text"),
        ({"flags": [True, 0]}, r"flags\[1\] is 0; true or false"),
        ({"flags": {}}, r"flags is \{\}; a list"),
    ],
)
def test_wrong_values_are_named_in_one_line(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"x.json: {said}.*; go away$"):
        records.read_record(path, Kind, "go away")


def test_right_values_become_what_is_meant():
    found = records.fitted({"x": 1, "names": ["a"]}, Point)
    assert found == Point(1, ("a",))
    assert records.fitted({"level": None, "more": [1]}, Kind) == {"level": None, "more": [1]}


def test_a_changed_record_is_refused_unless_its_checksum_is_removed(tmp_path):
    path = tmp_path / "x.json"
    records.write_record(path, {"count": 1, "more": (1, 2)})
    assert records.read_record(path, Kind, "go away") == {"count": 1, "more": [1, 2]}
    path.write_text(path.read_text().replace('"count": 1', '"count": 2'))
    with pytest.raises(InputError, match=r"its checksum differs.*remove its line"):
        records.read_record(path, Kind, "go away")
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "checksum" not in line))
    assert records.read_record(path, Kind, "go away")["count"] == 2


def test_a_record_in_another_place_is_refused(tmp_path):
    records.write_record(tmp_path / "x.json", {"count": 1}, "seed-0/x.json")
    with pytest.raises(InputError, match="its checksum differs"):
        records.read_record(tmp_path / "x.json", Kind, "go away", "seed-1/x.json")


def test_a_table_that_was_cut_or_exchanged_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    assert records.read_rows(path, None, "go away", "here") == []
    records.write_rows(path, ["a"], [{"a": 1}, {"a": 2}], "here")
    assert records.read_rows(path, ["a"], "go away", "here") == [{"a": "1"}, {"a": "2"}]
    whole = path.read_text().splitlines(keepends=True)
    for damaged, said in ((whole[:2], "its checksum differs"), (whole[:1], "cut after its heading")):
        path.write_text("".join(damaged))
        with pytest.raises(InputError, match=f"{said}.*; go away"):
            records.read_rows(path, ["a"], "go away", "here")
    path.write_text("".join(whole))
    with pytest.raises(InputError, match="its checksum differs"):
        records.read_rows(path, ["a"], "go away", "there")
    records.write_rows(path, ["a"], [], "here")
    assert records.read_rows(path, ["a"], "go away", "here") == []


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "loop"):
        with pytest.raises(InputError, match=f"{name} is no regular file; go away"):
            records.present(tmp_path / name, "go away")
    assert not records.present(tmp_path / "nothing", "go away")
