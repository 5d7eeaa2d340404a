"""Mechanistic interpretability of neural rankers as PyTerrier pipelines.

Which attention heads and MLPs cause a relevance score? Perturb the retrieved documents, patch the activations of each
component between the two sides, aggregate the effects::

    (bm25 >> PerturbDocs(TFC1()) >> PatchScorer(ranker) >> AggregateHeads())(topics)
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from pyterrier_mechir._version import __version__ as __version__

if TYPE_CHECKING:
    from pyterrier_mechir.circuits import circuit_measures, grow_circuit
    from pyterrier_mechir.interventions.edits import Ablate, Add, Scale
    from pyterrier_mechir.interventions.fair_attention import FairAttention
    from pyterrier_mechir.interventions.references import head_means
    from pyterrier_mechir.models.autoencoder import SparseAutoencoder
    from pyterrier_mechir.observe.attention import attention_of
    from pyterrier_mechir.observe.words.faithfulness import faithfulness
    from pyterrier_mechir.orders import OrderExplanation, explain_order
    from pyterrier_mechir.patching.metrics import AttentionTo, QueryTokenScore, TermWeight
    from pyterrier_mechir.patching.plan import Attribution, Auto, ColumnReplay, IntegratedGradients
    from pyterrier_mechir.plots.attention import plot_attention
    from pyterrier_mechir.plots.circuit import plot_circuit
    from pyterrier_mechir.plots.classes import plot_classes
    from pyterrier_mechir.plots.comparison import plot_comparison
    from pyterrier_mechir.plots.faithfulness import plot_faithfulness
    from pyterrier_mechir.plots.heads import plot_heads
    from pyterrier_mechir.plots.layers import plot_layers
    from pyterrier_mechir.plots.positions import plot_positions
    from pyterrier_mechir.plots.words import plot_words
    from pyterrier_mechir.rankers.bi_encoder import BiEncoder
    from pyterrier_mechir.rankers.colbert import ColBERT
    from pyterrier_mechir.rankers.cross_encoder import CrossEncoder
    from pyterrier_mechir.rankers.generative import GenerativeReranker
    from pyterrier_mechir.rankers.known_circuit import KnownCircuit, known_circuit
    from pyterrier_mechir.rankers.load import load_ranker
    from pyterrier_mechir.rankers.mono_t5 import MonoT5
    from pyterrier_mechir.rankers.splade import Splade
    from pyterrier_mechir.results.agreement import head_agreement, lens_agreement, split_halves
    from pyterrier_mechir.results.compare import compare_heads
    from pyterrier_mechir.results.explode import explode_effects
    from pyterrier_mechir.results.measures import (
        AxiomAgreement,
        EffectConcentration,
        PatchEffect,
        RankShift,
        ScoreShift,
        head_qrels,
    )
    from pyterrier_mechir.results.position_sensitivity import position_sensitivity
    from pyterrier_mechir.results.stored.artifact import PatchResults
    from pyterrier_mechir.run import run_sweep
    from pyterrier_mechir.stages.ablation_scorer import AblationScorer
    from pyterrier_mechir.stages.aggregate_heads import AggregateHeads
    from pyterrier_mechir.stages.attention_patterns import AttentionPatterns
    from pyterrier_mechir.stages.compare_heads import CompareHeads
    from pyterrier_mechir.stages.explain_score import ExplainScore
    from pyterrier_mechir.stages.head_gates import HeadGates
    from pyterrier_mechir.stages.pair_scorer import PairScorer
    from pyterrier_mechir.stages.patch_features import PatchFeatures
    from pyterrier_mechir.stages.patch_scorer import PatchScorer
    from pyterrier_mechir.stages.perturb_docs import PerturbDocs
    from pyterrier_mechir.stages.perturb_queries import PerturbQueries
    from pyterrier_mechir.stages.ranking_effects import RankingEffects
    from pyterrier_mechir.stages.score_attribution import ScoreAttribution
    from pyterrier_mechir.stages.score_lens import ScoreLens
    from pyterrier_mechir.stages.settings import Sweep
    from pyterrier_mechir.stages.site_tuning import SiteTuning
    from pyterrier_mechir.stages.steer import Steer, steering_vectors
    from pyterrier_mechir.verify import check_ranker

_HOMES = {
    "Ablate": "interventions.edits",
    "AblationScorer": "stages.ablation_scorer",
    "Add": "interventions.edits",
    "AggregateHeads": "stages.aggregate_heads",
    "AttentionPatterns": "stages.attention_patterns",
    "AttentionTo": "patching.metrics",
    "Attribution": "patching.plan",
    "Auto": "patching.plan",
    "AxiomAgreement": "results.measures",
    "BiEncoder": "rankers.bi_encoder",
    "ColBERT": "rankers.colbert",
    "ColumnReplay": "patching.plan",
    "CompareHeads": "stages.compare_heads",
    "CrossEncoder": "rankers.cross_encoder",
    "EffectConcentration": "results.measures",
    "ExplainScore": "stages.explain_score",
    "FairAttention": "interventions.fair_attention",
    "GenerativeReranker": "rankers.generative",
    "HeadGates": "stages.head_gates",
    "IntegratedGradients": "patching.plan",
    "KnownCircuit": "rankers.known_circuit",
    "MonoT5": "rankers.mono_t5",
    "OrderExplanation": "orders",
    "PairScorer": "stages.pair_scorer",
    "PatchEffect": "results.measures",
    "PatchFeatures": "stages.patch_features",
    "PatchResults": "results.stored.artifact",
    "PatchScorer": "stages.patch_scorer",
    "PerturbDocs": "stages.perturb_docs",
    "PerturbQueries": "stages.perturb_queries",
    "QueryTokenScore": "patching.metrics",
    "RankShift": "results.measures",
    "RankingEffects": "stages.ranking_effects",
    "Scale": "interventions.edits",
    "ScoreAttribution": "stages.score_attribution",
    "ScoreLens": "stages.score_lens",
    "ScoreShift": "results.measures",
    "SiteTuning": "stages.site_tuning",
    "SparseAutoencoder": "models.autoencoder",
    "Splade": "rankers.splade",
    "Steer": "stages.steer",
    "Sweep": "stages.settings",
    "TermWeight": "patching.metrics",
    "attention_of": "observe.attention",
    "check_ranker": "verify",
    "circuit_measures": "circuits",
    "compare_heads": "results.compare",
    "explain_order": "orders",
    "explode_effects": "results.explode",
    "faithfulness": "observe.words.faithfulness",
    "grow_circuit": "circuits",
    "head_agreement": "results.agreement",
    "head_means": "interventions.references",
    "head_qrels": "results.measures",
    "known_circuit": "rankers.known_circuit",
    "lens_agreement": "results.agreement",
    "load_ranker": "rankers.load",
    "plot_attention": "plots.attention",
    "plot_circuit": "plots.circuit",
    "plot_classes": "plots.classes",
    "plot_comparison": "plots.comparison",
    "plot_faithfulness": "plots.faithfulness",
    "plot_heads": "plots.heads",
    "plot_layers": "plots.layers",
    "plot_positions": "plots.positions",
    "plot_words": "plots.words",
    "position_sensitivity": "results.position_sensitivity",
    "run_sweep": "run",
    "split_halves": "results.agreement",
    "steering_vectors": "stages.steer",
}

__all__ = [
    "Ablate",
    "AblationScorer",
    "Add",
    "AggregateHeads",
    "AttentionPatterns",
    "AttentionTo",
    "Attribution",
    "Auto",
    "AxiomAgreement",
    "BiEncoder",
    "ColBERT",
    "ColumnReplay",
    "CompareHeads",
    "CrossEncoder",
    "EffectConcentration",
    "ExplainScore",
    "FairAttention",
    "GenerativeReranker",
    "HeadGates",
    "IntegratedGradients",
    "KnownCircuit",
    "MonoT5",
    "OrderExplanation",
    "PairScorer",
    "PatchEffect",
    "PatchFeatures",
    "PatchResults",
    "PatchScorer",
    "PerturbDocs",
    "PerturbQueries",
    "QueryTokenScore",
    "RankShift",
    "RankingEffects",
    "Scale",
    "ScoreAttribution",
    "ScoreLens",
    "ScoreShift",
    "SiteTuning",
    "SparseAutoencoder",
    "Splade",
    "Steer",
    "Sweep",
    "TermWeight",
    "attention_of",
    "check_ranker",
    "circuit_measures",
    "compare_heads",
    "explain_order",
    "explode_effects",
    "faithfulness",
    "grow_circuit",
    "head_agreement",
    "head_means",
    "head_qrels",
    "known_circuit",
    "lens_agreement",
    "load_ranker",
    "plot_attention",
    "plot_circuit",
    "plot_classes",
    "plot_comparison",
    "plot_faithfulness",
    "plot_heads",
    "plot_layers",
    "plot_positions",
    "plot_words",
    "position_sensitivity",
    "run_sweep",
    "split_halves",
    "steering_vectors",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()) is not None:
    import_module(f"{__name__}.notebook").register(_shell)
