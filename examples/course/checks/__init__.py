"""Self-checks of the course, one for each exercise: what is wrong with an answer, and not only that it is.

A cell of a notebook ends with the check of its answer, and shows the verdict. What the checks compare with is computed
from the notebook's own frames, so that they go with other queries, collections and rankers too.
"""

from checks.lesson_1 import lookers, output_of_head, settled_layer, what_attention_says
from checks.lesson_2 import agreement_by_hand, missing_terms, over_control, which_filler
from checks.lesson_3 import named_circuit, patched_together, two_effects, where_it_acts
from checks.lesson_4 import chosen_and_reported, queries_needed, ratio_of_means, which_claims
from checks.lesson_5 import believable, both_forms, turned_order, without
from checks.lesson_6 import damaged, harmful_head, held_out_change, new_directory, repaired, saved
from checks.verdicts import Verdict

__all__ = [
    "Verdict",
    "agreement_by_hand",
    "believable",
    "both_forms",
    "chosen_and_reported",
    "damaged",
    "harmful_head",
    "held_out_change",
    "lookers",
    "missing_terms",
    "named_circuit",
    "new_directory",
    "output_of_head",
    "over_control",
    "patched_together",
    "queries_needed",
    "ratio_of_means",
    "repaired",
    "saved",
    "settled_layer",
    "turned_order",
    "two_effects",
    "what_attention_says",
    "where_it_acts",
    "which_claims",
    "which_filler",
    "without",
]
