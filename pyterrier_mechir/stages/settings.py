"""One pipeline per setting, for ``pt.Experiment``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pyterrier as pt

from pyterrier_mechir.perturb.base import Perturbation, as_perturbation
from pyterrier_mechir.stages.perturb_docs import PerturbDocs


class Sweep(Mapping[str, pt.Transformer]):
    """A pipeline for each setting of a perturbation, by name.

    Example::

        sweep = Sweep(TFC1, position=range(0, 60, 10))
        pt.Experiment(sweep.pipelines(bm25, PatchScorer(tasb)), topics, qrels, [AxiomAgreement, nDCG @ 10])
        sweep["TFC1(position=10)"](bm25(topics))

    Args:
        made: what makes one: a class or an instance of perturbations, a decorated function, or any function of the
            settings that returns a perturbation or a ``pt.Transformer`` (which then is the stage itself).
        stage: options of the :class:`~pyterrier_mechir.PerturbDocs` that each perturbation gets, such as
            ``{"control": "random_term", "idf": corpus}``.
        settings: the values of each setting: those of a list, tuple, range or array are swept, anything else (a corpus,
            an ``Idf``) stays fixed. Several settings give all combinations.

    Raises:
        ValueError: nothing is swept.
        TypeError: ``made`` returns something else.
    """

    def __init__(self, made: Callable[..., Any], stage: Mapping[str, Any] | None = None, /, **settings: Any):
        values = {name: list(v) if _is_several(v) else [v] for name, v in settings.items()}
        swept = [name for name, v in settings.items() if _is_several(v)]
        if not swept or not all(values.values()):
            raise ValueError("nothing to sweep: give a setting a range or a list, such as position=range(0, 60, 10).")
        of_settings = made.with_settings if isinstance(made, Perturbation) else made
        label = made.name if isinstance(made, Perturbation) else getattr(made, "__name__", "")
        self._stages: dict[str, pt.Transformer] = {}
        for combination in product(*values.values()):
            chosen = dict(zip(values, combination, strict=True))
            name = f"{label}({', '.join(f'{setting}={chosen[setting]}' for setting in swept)})"
            one = of_settings(**chosen)
            self._stages[name] = (
                one if isinstance(one, pt.Transformer) else PerturbDocs(as_perturbation(one), **(stage or {}))
            )

    def pipelines(
        self, before: pt.Transformer | None = None, after: pt.Transformer | None = None
    ) -> dict[str, pt.Transformer]:
        """Each stage between what comes before it and what comes after it, as ``pt.Experiment`` takes them.

        Args:
            before: what comes before each stage, such as a retriever with its text loader.
            after: what comes after it, such as a ``PatchScorer``.
        """
        pipelines = {}
        for name, stage in self._stages.items():
            pipeline = stage if before is None else before >> stage
            pipelines[name] = pipeline if after is None else pipeline >> after
        return pipelines

    def __getitem__(self, name: str) -> pt.Transformer:
        return self._stages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def __repr__(self) -> str:
        return f"Sweep({', '.join(self._stages)})"


def _is_several(value: object) -> bool:
    return isinstance(value, (list, tuple, range, np.ndarray))
