"""The one kind of error a user can cause."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line that names the value, what was expected and what to do. The command line prints
    it and exits with code 2; everything else that escapes `mfh` is a defect of `mfh`.
    """


def in_a_line(error: BaseException) -> str:
    """An exception of somebody else's code as part of a one-line message: its type and the start of its text."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def close_names(name: str, known: list[str], limit: int = 5) -> str:
    """A hint for a misspelt name: the closest known ones, or the first few if none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    if close:
        return f"close names: {', '.join(map(repr, close))}"
    listed = ", ".join(map(repr, known[:limit])) + (", ..." if len(known) > limit else "")
    return f"known names: {listed}" if known else "there are none"
