import pickle

import pytest

from mfh.errors import InputError, in_a_line, plain, shown


@pytest.mark.parametrize("obeyed", ["\x1b[2J", "\x07", "\r", "\x9b", "\x7f", "\u202e", "\u2028", "\udc80"])
def test_what_a_terminal_obeys_is_spelt_out(obeyed):
    text = plain(f"a{obeyed}b")
    assert obeyed[0] not in text
    assert "\\" in text
    text.encode()  # nothing is left that has no encoding
    for said in (str(InputError(f"layer {obeyed}")), in_a_line(ValueError(obeyed)), shown(obeyed)):
        assert obeyed[0] not in said


def test_other_text_stays_as_it_is():
    for text in ("[red]naïve[/red]\n\t雪", "", "a\\x1b"):
        assert plain(text) == text


def test_errors_whose_text_cannot_be_read():
    class UnspeakableError(Exception):
        def __str__(self):
            raise RuntimeError

    assert in_a_line(UnspeakableError()) == "UnspeakableError: (its text cannot be read)"


def test_errors_travel_between_processes():
    assert str(pickle.loads(pickle.dumps(InputError("a\x1b")))) == "a\\x1b"
