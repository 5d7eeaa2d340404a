"""Activation patching as a pipeline stage."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.sites import Sites, activation_of, select_sites
from pyterrier_mechir.patching.best import methods_of
from pyterrier_mechir.patching.plan import DIRECTIONS, Method, check_sites, check_streams, method_of
from pyterrier_mechir.patching.receivers import FINAL, parse_receivers, upstream
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.stages.base.measure import Measure
from pyterrier_mechir.stages.pair_scorer import PairScorer
from pyterrier_mechir.text.fillers import Filler
from pyterrier_mechir.text.positions import Positions

if TYPE_CHECKING:
    from pyterrier_mechir.patching.metrics import Metric


class PatchScorer(PairScorer):
    """Patches each component of a ranker, for each document, and says how far the score moves.

    For a document's baseline x_b and its perturbed side x_p, of scores s_b and s_p, each site n is patched alone:

    - ``denoise`` (sufficiency; published practice): e = [s(x_b; n <- n(x_p)) - s_b] / (s_p - s_b),
    - ``noise`` (necessity): e = [s_p - s(x_p; n <- n(x_b))] / (s_p - s_b).

    e = 1 where the site alone carries the whole difference, 0 where it carries none. The patched scores are those that
    hooks on the unmodified model give. See Chen et al. (SIGIR 2024) and Parry et al. (ECIR 2025).

    With ``receivers``, only the paths from a site to these are patched (path patching: Wang et al., ICLR 2023, appendix
    B; for rankers Lu, Chen and Eickhoff, EMNLP 2025). First the site alone is patched, while every other attention head
    keeps the output z that it has in the run being patched; MLPs, norms and embeddings are computed. Then that run is
    repeated with nothing patched but the receivers' activations, at all positions, as they were in the first. The
    patched score is that of this second run, and the effect is normalised as above. For ``final`` it is that of the
    first.

    Expected input columns: ``qid, query, docno, text``, and ``text_perturbed`` or ``query_perturbed`` (without them
    ``perturbation`` is applied first) with, optionally, ``alignment`` and ``text_baseline`` or ``query_baseline``; for
    ``positions="top_units"`` also ``units, unit_spans, unit_scores``, which ExplainScore adds. With
    ``query_perturbed``, the query encoder of a bi-encoder is patched, the document's vector being the same on both
    sides; a cross-encoder reads the same document with both queries.

    Adds, one row per document:

    - ``score``, ``rank``: the ranker's own score of the text, so that the output is an ordinary re-ranking;
    - ``score_baseline``: score of the aligned baseline, with fillers;
    - ``score_perturbed``: score of the perturbed side;
    - ``patch_scores``: float32 array, the patched score of each site (of the noise direction for ``"noise"``);
    - ``patch_effect``: float32 array, the normalised effect e of each site, NaN where abs(s_p - s_b) < ``min_delta``;
    - ``patch_effect_noise``: the noise effect, for ``direction="both"`` only.

    - ``tokens``, ``tokens_baseline``, ``token_classes``: of each position of the two sides, unless ``positions="all"``;
    - ``slot_units``: for ``positions="top_units"`` only, the words that are patched, the strongest first.

    The arrays are ``[layer, head]`` for heads and their q, k, v and pattern (``[layer, group]`` for k and v that groups
    of heads share), ``[layer, neuron]`` for neurons, ``[1]``
    for the embeddings, ``[layer]`` for any other component, ``[site]`` for a list of components or ``block``, with NaN
    where ``heads``, ``layers`` or ``receivers`` leave a site out. Positions other than ``all`` add a last axis,
    ``[position]`` of the pair's own length, or ``[token class]``, with NaN where the pair has none of that class, or
    ``[unit]``, with NaN where the text has fewer, or none of a word's tokens is in the sequence. A row without a
    perturbed text, or whose perturbed text is its text, has NaN throughout.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        component: ``head`` (z), ``q``, ``k``, ``v``, ``pattern``, ``attn_out``, ``mlp_out``, ``neuron``, ``resid_pre``,
            ``resid_mid``, ``resid_post``, ``embed``, of a decoder that reads an encoder also ``cross_head``,
            ``cross_q``, ``cross_k``, ``cross_v``, ``cross_pattern`` and ``cross_attn_out``, or a list of these;
            ``block`` is resid_pre, attn_out and mlp_out. What each is,
            :data:`~pyterrier_mechir.models.components.COMPONENTS` says. A position of a pattern is where attention
            comes from: its row.
        positions: ``all``: a site is patched at every position at once; ``each``: at each position by itself;
            ``class``: at the positions of each token class by themselves
            (:data:`~pyterrier_mechir.text.encoding.TOKEN_CLASSES`); ``top_units``, or ``("top_units", 5)``: at the
            tokens of each of the row's 3, or 5, strongest words (or other units) by itself, from the greatest absolute
            score that ExplainScore gave a word of the text that varies. They are the tokens of the baseline: where the
            perturbation takes a word out, replaces or moves it, the positions where it was. Or a list of positions,
            each by itself, where negative ones count from the end.
        direction: ``denoise``, ``noise`` or ``both``.
        method: ``exact``, or how patched scores are estimated: ``attribution``, which is
            :class:`~pyterrier_mechir.Attribution`, ``ig``, which is :class:`~pyterrier_mechir.IntegratedGradients`,
            ``column``, which is :class:`~pyterrier_mechir.ColumnReplay` (of streams and what layers add to them, at
            positions), or one of these with options; or ``auto``, which is :class:`~pyterrier_mechir.Auto`: the best
            method known for each component. Estimates take the place of the patched scores, and
            ``attrs["mechir"]["methods"]`` tells the method of each component.
        screen: with an estimating method, what to verify: all is estimated, and some of it is then patched exactly. A
            whole number, 20, is one of sites: those of greatest estimated effect over the frame, in all its rows. A
            float, 0.05, is a share of cells (row, direction, site, slot): of those whose sides differ and that the
            method does not patch exactly itself, the ones in which the estimate is farthest from a second one
            (:func:`~pyterrier_mechir.patching.screening.second_opinion`); 1.0 is all of them. A set that is patched
            together is one site. What is verified depends on the frame, so that a frame that comes in batches is
            screened batch by batch. ``attrs["mechir"]["screen"]`` tells which sites, or how many cells, were verified,
            and the error of the estimates on a random sample of others
            (:class:`~pyterrier_mechir.patching.outcome.Screening`,
            :class:`~pyterrier_mechir.patching.outcome.CellScreening`); where it is poor, a warning says so.
        heads: only these (layer, head), or (layer, neuron). An entry may also be the name of a site, ``"L5.mlp_out"``,
            or a list of heads and names, which are patched together; the arrays are then ``[entry]``.
        layers: only these layers.
        receivers: where paths end: ``final`` (the last layer's ``resid_post``), or the name or names of heads' queries,
            keys and values, ``"L5H8.q"``, which are all patched together. A site that is upstream of none of them is
            left out. Heads read the stream that enters their layer, so nothing of their own layer but its ``resid_pre``
            is upstream. A receiver that a site is not upstream of keeps its value. None patches all paths.
        metric: what is measured in place of the score, whose values ``score_baseline``, ``score_perturbed`` and
            ``patch_scores`` then are: an :class:`~pyterrier_mechir.AttentionTo` (where a head looks), of a Splade a
            :class:`~pyterrier_mechir.TermWeight`, of a ColBERT a :class:`~pyterrier_mechir.QueryTokenScore`. ``score``
            and ``rank`` stay the ranker's. Sites that do not come before it are left out. None measures the score.
        perturbation: applied where the input has no ``text_perturbed``; :class:`~pyterrier_mechir.perturb.TFC1` by
            default.
        filler: what stands in the baseline where the perturbed side has an insertion: ``"a"`` (published practice),
            any single-token word, ``"mask"``, ``"pad"``, ``"random"`` (words as rare, drawn thrice per row) or a
            :class:`~pyterrier_mechir.perturb.RandomFiller`; or a list of these, whose scores are averaged. Head maps
            depend on it, so report more than one.
        min_delta: least abs(s_p - s_b), in score units, for which a normalised effect is given.
        text_field: column of the document text.
        batch_size: documents that are patched together; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown option, a layer, head, component, method or receiver that the ranker does not have, no
            site upstream of a receiver, or receivers with a method other than ``exact``.
    """

    schematic: ClassVar = {"label": "PatchScorer"}

    def __init__(
        self,
        ranker: Ranker,
        component: str | Sequence[str] = "head",
        *,
        positions: str | Sequence[int | str] = "all",
        direction: str = "denoise",
        method: Method = "exact",
        screen: float | None = None,
        heads: Sequence[Any] | None = None,
        layers: Sequence[int] | None = None,
        receivers: str | Sequence[str] | None = None,
        metric: Metric | None = None,
        perturbation: Perturbation | None = None,
        filler: Filler | Sequence[Filler] = "a",
        min_delta: float = 1e-3,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        super().__init__(
            ranker,
            perturbation=perturbation,
            filler=filler,
            text_field=text_field,
            batch_size=batch_size,
            verbose=verbose,
        )
        ranker = self.ranker
        self.component = component
        self.positions = positions
        self.slots = Positions.of(positions)
        self.direction = one_of("direction", direction, DIRECTIONS)
        self.method = method_of(method, ranker.anatomy, ranker.towers())
        self.heads = heads
        self.layers = layers
        self.receivers = receivers
        self.screen = self._checked(screen)
        self.ranker.check_positions(self.slots, receivers is not None)
        self.paths_to = parse_receivers(receivers, ranker.anatomy)
        self.metric = metric
        if metric is not None:
            metric.check(self.ranker)
        if metric is not None and not metric.at_end and receivers == FINAL:
            raise ValueError("the final stream comes after all attention; name heads' q, k or v as receivers instead.")
        check_sites(self.method, self.sites.patched, ranker.anatomy, ranker.towers(), metric)
        check_streams(self.sites.patched, ranker.anatomy, ranker.towers())
        self.min_delta = min_delta
        for site in {(site.component, site.layer): site for one in self.sites.sites for site in one.members}.values():
            self.ranker.anatomy.port(*activation_of(site, ranker.n_layers))

    def _checked(self, screen: float | None) -> float | None:
        if screen is not None and self.method == "exact":
            raise ValueError(
                f"screen={screen} verifies estimates; give method='attribution', 'ig', 'column' or 'auto' with it."
            )
        if self.receivers is not None and self.method != "exact":
            raise ValueError("paths to receivers are patched exactly; leave method out, or receivers.")
        if screen is None or (isinstance(screen, Integral) and not isinstance(screen, bool) and screen >= 1):
            return screen
        if isinstance(screen, Real) and not isinstance(screen, Integral) and 0 < screen <= 1:
            return float(screen)
        raise ValueError(
            f"screen is {screen!r}; verify at least 1 site, or a share of cells above 0 and up to 1.0, or give None to "
            "verify none."
        )

    def _key(self) -> tuple[Any, ...]:
        return (*super()._key(), isinstance(self.screen, float))  # 1 site is not 1.0, all cells

    @property
    def sites(self) -> Sites:
        """The sites that are patched, and the shape of the arrays."""
        sites = upstream(select_sites(self.component, self.ranker.anatomy, self.heads, self.layers), self.paths_to)
        return sites if self.metric is None else self.metric.upstream(sites)

    @property
    def measure(self) -> Measure:
        """What is measured: the scores of both sides, and of patched runs."""
        sites = self.sites
        return Measure(
            sites,
            self.slots,
            self.direction,
            self.paths_to,
            self.method,
            methods_of(self.method, sites.patched, self.slots, self.ranker, self.metric),
            self.screen,
            self.metric,
            self.min_delta,
        )
