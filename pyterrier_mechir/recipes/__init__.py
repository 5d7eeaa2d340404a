"""Published experiments in one call, with the published figures beside what they give here.

A recipe takes a ranker and documents, runs an experiment as its paper describes it by the stages of this package, and
returns a :class:`~pyterrier_mechir.recipes.base.RecipeResult`. Its docstring says what differs from the paper, and why.
"""

from pyterrier_mechir.recipes.ablation import head_ablation
from pyterrier_mechir.recipes.base import RecipeResult
from pyterrier_mechir.recipes.feature_attention import perlman_feature_attention
from pyterrier_mechir.recipes.grades import mechir25
from pyterrier_mechir.recipes.length import savolainen25_lnc1
from pyterrier_mechir.recipes.pathway import lu25_pathway
from pyterrier_mechir.recipes.saturation import vanmarken25_tfc2
from pyterrier_mechir.recipes.stable_pairs import polyakov25
from pyterrier_mechir.recipes.term_frequency import chen24_tfc1
from pyterrier_mechir.recipes.word_methods import faithful_words

__all__ = [
    "RecipeResult",
    "chen24_tfc1",
    "faithful_words",
    "head_ablation",
    "lu25_pathway",
    "mechir25",
    "perlman_feature_attention",
    "polyakov25",
    "savolainen25_lnc1",
    "vanmarken25_tfc2",
]
