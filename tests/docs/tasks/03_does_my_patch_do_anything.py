"""Patches are checked on one's own model against single hooks, and sites without any effect are named."""

from pyterrier_mechir import check_ranker

found = check_ranker(ranker, frame.head(2))
assert found["hooks"].status == found["quiet sites"].status == found["self-patch"].status == "ok"
