"""Rows of any characters at all: what people paste, what crawlers return, and what no one means to write."""

from __future__ import annotations

from hypothesis import strategies as st

_WORDS = [
    *["tides", "ocean", "neap", "spring", "high", "Tides", "OCEAN's", "the", "not", "is", "can", "only", "a", "Moon"],
    *["Dover", "Calais", "New York", "7", "24", "007", "x-ray", "\u0663\u0664", "\u216b", "\u00bd", "_", "9\u20e3"],
    *["\u039f\u0394\u039f\u03a3", "\u0130stanbul", "Stra\u00dfe", "\u01c5", "\ufb01n", "\u212aelvin", "\u24b6\u24d0"],
    *["e\u0301te\u0301", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u0939\u093f\u0928\u094d"],
    *["\u6f22\u5b57", "\uac00", "\U0001f600", "\U0001f1eb\U0001f1f7", "\U0001d4d0", "tide" * 40, "-" * 30, "'n'"],
]

_SEPARATORS = [
    *[" "] * 12,
    *[", ", ". ", "! ", "? ", " (", ") ", "; ", '"', "\u201c", "\u201d", "'", "\u2019", "-", "/", "", "  ", "..."],
    *["\n", "\r\n", "\t", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028"],
    *["\u2029", "\u202f", "\u3000", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\xad", "\u180e"],
    *["\0", "\x01", "\x08", "\x1b", "\x7f", "\u202e", "\u2067", "\u0301", "\u20dd", "\ufffd", "\uffff"],
    *["\ud800", "\udfff", "\ude00\ud83d"],
]
"""Spaces, marks, Unicode's own separators and joiners, control characters, directions, marks that combine with nothing,
and halves of surrogate pairs."""

_anything = st.text(st.characters(exclude_categories=()), max_size=4)


def texts(most: int = 14) -> st.SearchStrategy[str]:
    """A text of words and of anything, with anything between them; it may be empty."""
    word = st.one_of(st.sampled_from(_WORDS), st.sampled_from(_WORDS), _anything)
    return st.lists(st.tuples(word, st.sampled_from(_SEPARATORS)), max_size=most).map(
        lambda parts: "".join(word + separator for word, separator in parts)
    )


def rows() -> st.SearchStrategy[tuple[str, str]]:
    """A text and a query, which may have words of it."""
    return st.tuples(texts(), st.one_of(st.sampled_from(["ocean tides", "neap tides", '"high tides"', ""]), texts(4)))
