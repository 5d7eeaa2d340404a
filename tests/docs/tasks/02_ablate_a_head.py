"""A head is switched off, by 0 and by its mean, and the ranker that it was taken from is as before."""

from pyterrier_mechir import Ablate, Scale

before = ranker.scorer()(frame)["score"]
zero = ranker.edited([Scale("L1H2", 0.0)])
mean = ranker.edited([Ablate("L1H2", by="mean")], reference=frame)
for edited in (zero, mean):
    assert not np.allclose(edited.scorer()(frame)["score"], before)
np.testing.assert_array_equal(ranker.scorer()(frame)["score"], before)
