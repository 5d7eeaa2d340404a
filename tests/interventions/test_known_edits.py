"""On a ranker whose circuit is known, edits do what it was built to do."""

from __future__ import annotations

import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import nDCG

from pyterrier_mechir import Ablate, AblationScorer, PairScorer, PerturbDocs, RankingEffects, known_circuit
from pyterrier_mechir.perturb import TFC1

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def judged():
    """The judged documents of the lab collection: of each query some that answer it and some that do not."""
    lab = pt.get_dataset("mechir:lab")
    rows = lab.get_qrels().merge(lab.get_topics(), on="qid").drop(columns="label")
    return lab.text_loader()(rows)


def among_others(judged: pd.DataFrame, n: int = 8) -> pd.DataFrame:
    """The judged documents of some queries, each query's among some others of the collection."""
    texts = pd.DataFrame(pt.get_dataset("mechir:lab").get_corpus_iter())
    topics = judged[["qid", "query"]].drop_duplicates().head(26)
    others = [texts.sample(n, random_state=i).assign(qid=qid, query=query) for i, (qid, query) in topics.iterrows()]
    return (
        pd.concat([judged[judged["qid"].isin(topics["qid"])], *others])
        .drop_duplicates(["qid", "docno"])
        .reset_index(drop=True)
    )


def of_role(heads: pd.DataFrame, *roles: str) -> list[str]:
    return heads.loc[heads["role"].isin(roles), "docno"].tolist()


def gain(ranker, pairs):
    scored = PairScorer(ranker)(pairs)
    return (scored["score_perturbed"] - scored["score_baseline"]).mean()


@pytest.mark.parametrize("direction", ["query", "document"])
def test_without_the_matching_head_a_query_term_gains_nothing(direction, judged):
    ranker, heads = known_circuit(direction)
    pairs = PerturbDocs(TFC1())(judged.groupby("qid").head(1))
    whole = gain(ranker, pairs)
    without = ranker.edited([Ablate(*of_role(heads, "matching"), by="mean")], reference=judged.iloc[::9])
    assert abs(gain(without, pairs)) <= 0.05 * whole
    useless = [Ablate(name, by="mean") for name in of_role(heads, "inert", "decoy")]
    assert gain(ranker.edited(useless, reference=judged.iloc[::9]), pairs) == pytest.approx(whole, rel=0.05)


def test_the_ranking_can_spare_all_heads_but_those_of_the_circuit(judged):
    ranker, heads = known_circuit("query")
    lab = pt.get_dataset("mechir:lab")
    # Either gathering head alone can be spared, as the other does its work; both together cannot.
    matching, gathering, others = (
        of_role(heads, *roles) for roles in (["matching"], ["gathering"], ["inert", "decoy"])
    )
    scored = AblationScorer(ranker, heads=[matching, gathering, *([name] for name in others)])(among_others(judged))
    found = RankingEffects(lab.get_qrels(), [nDCG @ 10])(scored).set_index("docno")
    circuit = [*matching, "+".join(gathering)]
    assert set(found["score"].nsmallest(2).index) == set(circuit)
    assert found.loc[circuit, "p_adjusted"].max() < 0.05 < found.loc[others, "p_adjusted"].min()
    assert found.loc[circuit, "score"].max() < -0.1 and found.loc[others, "score"].abs().max() < 0.03
