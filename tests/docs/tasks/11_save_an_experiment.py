"""What an experiment ranked is saved with all its columns, and is used again."""

import pickle
from tempfile import mkdtemp

from pyterrier_mechir import PairScorer, PerturbDocs, ScoreShift
from pyterrier_mechir.perturb import TFC1

pipeline, measures = bm25 >> PerturbDocs(TFC1()) >> PairScorer(ranker), [ScoreShift(missing=0)]
options = {"save_dir": mkdtemp(), "save_format": pickle, "names": ["TFC1"]}
first = pt.Experiment([pipeline], topics, qrels, measures, **options)
again = pt.Experiment([pipeline], topics, qrels, measures, **options)
pd.testing.assert_frame_equal(first, again)
assert first.filter(like="ScoreShift").notna().all(axis=None)
