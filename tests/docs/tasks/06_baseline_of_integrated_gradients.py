"""What stands in the place of the words is chosen, and how far the sum misses the score is told."""

from pyterrier_mechir import ExplainScore

some = frame.head(2)
for absence in ("mask", "pad", "random", "a"):
    words = ExplainScore(ranker, "ig", absence=absence)(some)
    sums = words["unit_scores"].map(np.sum) + words["unit_rest"] + words["score_empty"] + words["sum_error"]
    np.testing.assert_allclose(sums, words["score"], rtol=1e-4)
