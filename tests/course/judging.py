"""What the tests of self-checks ask of each of them."""

from __future__ import annotations


def judge(check, wrongs, right, *given, n=1):
    """Wrong answers have the words that are expected of their verdicts, and no answer is no mistake."""
    assert len(wrongs) >= 2
    messages = set()
    for answer, words in wrongs:
        verdict = check(*(answer if n > 1 else [answer]), *given)
        assert verdict.state == "wrong" and words in verdict.message, (answer, verdict)
        messages.add(verdict.message)
    assert len(messages) >= 2
    verdict = check(*(right if n > 1 else [right]), *given)
    assert verdict.state == "right", verdict
    assert check(*[...] * n, *given).state == "open"
