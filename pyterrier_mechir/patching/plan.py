"""What is patched, and how: the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.components import ACTIVATIONS, READ_BY, STARTS
from pyterrier_mechir.text.positions import ALL, Positions

if TYPE_CHECKING:
    from pyterrier_mechir.models.anatomy import Anatomy
    from pyterrier_mechir.models.sites import Site, SiteSet
    from pyterrier_mechir.patching.metrics import Metric
    from pyterrier_mechir.rankers.running import Tower


DIRECTIONS = ("denoise", "noise", "both")


@dataclass(frozen=True)
class Plan:
    """What is patched in pairs, whatever the method.

    Args:
        sites: the sites, each of which is patched by itself, or sets of sites that are patched together.
        direction: ``denoise`` (perturbed activations into the baseline run), ``noise`` (the reverse) or ``both``.
        batch_size: pairs in a batch; None forms batches by length.
        positions: which positions are patched together, and which apart.
        receivers: only what each site does to these, directly or through MLPs, is patched in (see
            :mod:`~pyterrier_mechir.patching.paths`); each site must be upstream of one. Without any, all it does.
    """

    sites: Sequence[Site | SiteSet] = ()
    direction: str = "denoise"
    batch_size: int | None = None
    positions: Positions = ALL
    receivers: Sequence[Site] = ()

    @property
    def ways(self) -> tuple[str, ...]:
        """The directions that are swept, one by one."""
        return ("denoise", "noise") if self.direction == "both" else (self.direction,)

    def at(self, sites: Sequence[Site | SiteSet]) -> Plan:
        """The same for other sites."""
        return replace(self, sites=sites)


@dataclass(frozen=True)
class Attribution:
    """Attribution patching (Nanda, 2023): the first-order estimate of every patched score at once.

    For a site of activation n, the patched score is taken to be s + ê with s the score of the run that is patched and
    ê = [n(source) - n(target)] . ds/dn, summed over the entries that the patch replaces, with the gradient at the
    patched run itself: the baseline for ``denoise``, the perturbed side for ``noise``. The estimate of a set is the sum
    of its sites'. It costs two forward passes and one backward pass a direction, whatever the number of sites.

    The two options are the corrections of AtP* (Kramár et al., 2024, arXiv:2403.00745).

    Args:
        qk_fix: for queries and keys, recompute the softmax instead of taking its gradient, which vanishes where
            attention is saturated: ê is the sum over heads of [z(with the source's q, or k) - z] . ds/dz, with masks,
            rotary and relative positions, and groups of heads that share a key, as the model has them. None does so
            wherever the model lets its attention be followed, which all do that attend through transformers' attention
            interface without edits of attention weights; False is the published first order. (A ``pattern`` comes after
            the softmax, and z is linear in it, so that there is nothing to fix.)
        grad_drop: take the gradient once for each layer, with that layer's ``attn_out`` and ``mlp_out`` (and
            ``cross_attn_out``) held constant, so that a direct effect and an indirect one do not cancel: ê is the sum
            of the absolute values of these L estimates over L - 1, L being the number of layers, since a component has
            no gradient where its own layer is held. (No pass holds residual streams and embeddings, so theirs come out
            up to L / (L - 1) times as great.) In post-norm models the norms stay in the stream. ê is unsigned, a
            measure of how much a site matters rather than of which way it pushes: the patched score is given as s moved
            by ê towards the source's score, so that normalised effects are ê / abs(s_p - s_b). It may exceed what any
            patch does, and serves to rank sites, best together with ``screen``. It costs L backward passes at most,
            each through the layers up to the one that is held.
    """

    qk_fix: bool | None = None
    grad_drop: bool = False

    @property
    def is_signed(self) -> bool:
        """Whether estimates tell an increase from a decrease."""
        return not self.grad_drop


@dataclass(frozen=True)
class IntegratedGradients:
    """Attribution with gradients averaged on the way from the target's activations to the source's.

    Gradients are taken at the midpoints (k - 1/2) / steps, k = 1 ... steps, of the straight line (Sundararajan et al.,
    2017, by the midpoint rule).

    Args:
        over: ``inputs``: the line goes from the word embeddings of the patched run to those of the source, and the
            mean gradient at each site is multiplied by n(source) - n(target), as in EAP-IG (Hanna et al., 2024,
            arXiv:2403.17806); it costs ``steps`` forward and backward passes and two forward passes a direction.
            ``activations``: each site, or set of sites, is interpolated by itself, all else being the patched run's,
            so that the estimate tends to the exact patched score as ``steps`` grows (completeness); it costs ``steps``
            exact sweeps with gradients, and is a check of the others rather than a shortcut.
        steps: points on the line.

    Raises:
        ValueError: an unknown ``over``, or no steps.
    """

    over: str = "inputs"
    steps: int = 10

    def __post_init__(self) -> None:
        one_of("over", self.over, ("inputs", "activations"))
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; integrate over at least 1.")

    @property
    def is_signed(self) -> bool:
        """Whether estimates tell an increase from a decrease."""
        return True


@dataclass(frozen=True)
class ColumnReplay:
    """Column replay: patches of streams and of what layers add to them, at positions, estimated for all at once.

    In the run in which some positions are patched, these positions' own states are computed exactly, layer by layer,
    beside those of the others in the run that is patched; what the others notice of them counts to first order, the
    softmax of attention being exact. It costs about as much as one forward pass for each layer and component, whatever
    the number of positions (``pyterrier_mechir.models.columns``).

    For ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn_out`` and ``mlp_out``. Where the gradient misses most is at
    the positions that the perturbation edits.

    Args:
        edited: ``exact`` patches slots with an edited position exactly; ``column`` estimates them too.

    Raises:
        ValueError: an unknown ``edited``.
    """

    edited: str = "exact"

    def __post_init__(self) -> None:
        one_of("edited", self.edited, ("exact", "column"))

    @property
    def is_signed(self) -> bool:
        """Whether estimates tell an increase from a decrease."""
        return True


@dataclass(frozen=True)
class Auto:
    """The best method known for each component, at all positions and at some.

    What is a part of a layer's attention or MLP (heads, their queries, keys, values and patterns, neurons, features) is
    estimated by :class:`Attribution`: the gradient is good there. Streams and what layers add to them are estimated by
    :class:`ColumnReplay` where single positions are patched, and else patched exactly, as they are where column replay
    cannot follow the model; so is all else (:data:`~pyterrier_mechir.patching.best.BEST`). Sites that are patched
    together are estimated where one method is the best of each, and takes sets.
    """

    @property
    def is_signed(self) -> bool:
        """Whether estimates tell an increase from a decrease."""
        return True


Approximation = Attribution | IntegratedGradients | ColumnReplay | Auto

Method = str | Approximation

NAMED: dict[str, type[Approximation]] = {
    "attribution": Attribution,
    "ig": IntegratedGradients,
    "column": ColumnReplay,
    "auto": Auto,
}
"""What estimates, by the name that stands for its default options."""


def method_of(value: Method, anatomy: Anatomy, towers: Mapping[str, Tower] | None = None) -> Method:
    """What ``PatchScorer(method=...)`` means: ``exact``, or how to estimate, with no option left open.

    Args:
        value: a name, or a method with options.
        anatomy: of the model.
        towers: the models that encode, with their edits; None for models without.

    Raises:
        ValueError: an unknown name, or a method that the model does not allow.
    """
    if not isinstance(value, Approximation):
        name = one_of("method", value, ("exact", *NAMED))
        value = NAMED[name]() if name in NAMED else name
    if isinstance(value, Attribution) and value.qk_fix is None:
        value = replace(value, qk_fix=not _hides_attention(anatomy, towers))
    if isinstance(value, Attribution) and value.grad_drop and anatomy.n_layers < 2:
        raise ValueError("grad_drop compares layers, and this model has only one; use grad_drop=False.")
    if isinstance(value, IntegratedGradients) and value.over == "inputs" and "embed" in anatomy.lacks:
        raise ValueError(
            "a decoder's own input is its start token, from which nothing leads to the source's; use 'attribution' or "
            "IntegratedGradients(over='activations')."
        )
    if isinstance(value, ColumnReplay) and anatomy.cross_attends:
        raise ValueError(
            "column replay tells positions apart, and a decoder that reads an encoder has one; patch the encoder, or "
            "use method='exact'."
        )
    if isinstance(value, ColumnReplay) and "pattern" in anatomy.lacks:
        raise ValueError(f"column replay computes attention itself, but {anatomy.lacks['pattern']} Use method='exact'.")
    return value


def name_of(method: Method) -> str:
    """What ``PatchScorer(method=...)`` calls a method, whatever its options."""
    return method if isinstance(method, str) else next(name for name, kind in NAMED.items() if type(method) is kind)


def _hides_attention(anatomy: Anatomy, towers: Mapping[str, Tower] | None) -> str:
    """Why the outputs of heads cannot be computed from other queries and keys; empty where they can."""
    pattern = "cross_pattern" if anatomy.cross_attends else "pattern"
    if pattern in anatomy.lacks:
        return anatomy.lacks[pattern]
    if any(edit.key[1] in ("pattern", "cross_pattern") for tower in (towers or {}).values() for edit in tower.edits):
        return "the attention weights of this ranker are edited after the softmax."
    return ""


def check_sites(
    method: Method,
    sites: Sequence[Site | SiteSet],
    anatomy: Anatomy,
    towers: Mapping[str, Tower],
    metric: Metric | None,
) -> None:
    """Check that a method can estimate the patches of some sites.

    Args:
        method: from :func:`method_of`.
        sites: what is patched.
        anatomy: of the model.
        towers: the models that encode, with their edits.
        metric: what is measured in place of the score.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(method, ColumnReplay):
        check_columns(sites, towers, metric)
    if isinstance(method, Attribution) and method.qk_fix and reads_softmax(sites):
        reason = _hides_attention(anatomy, towers)
        if reason:
            raise ValueError(f"qk_fix recomputes the softmax of queries and keys, but {reason} Use qk_fix=False.")


def reads_softmax(sites: Sequence[Site | SiteSet]) -> bool:
    """Whether any of some sites are queries or keys, which :class:`Attribution` may fix."""
    return any(ACTIVATIONS[site.component] in READ_BY for one in sites for site in one.members)


def check_columns(sites: Sequence[Site | SiteSet], towers: Mapping[str, Tower], metric: Metric | None) -> None:
    """Check that column replay can estimate the patches of some sites.

    Args:
        sites: what is patched.
        towers: the models that encode, with their edits.
        metric: what is measured in place of the score.

    Raises:
        ValueError: it cannot.
    """
    from pyterrier_mechir.models.edits import Placed

    covered, otherwise = ", ".join(STARTS), "use method='attribution', or 'exact'."
    wrong = next((one for one in sites if len(one.members) > 1 or one.component not in STARTS), None)
    if wrong is not None:
        raise ValueError(f"column replay patches one of {covered} at a time, and {wrong.name} is none; {otherwise}")
    if metric is not None and not metric.at_end:
        raise ValueError(f"column replay measures what is made of the final states, and not {metric!r}; {otherwise}")
    if any(isinstance(edit, Placed) for tower in towers.values() for edit in tower.edits):
        raise ValueError(
            "column replay follows edits that are the same at every position of every text, and not FairAttention, or "
            f"Ablate by='resample' or per='position class'; {otherwise}"
        )


def check_streams(sites: Sequence[Site | SiteSet], anatomy: Anatomy, towers: Mapping[str, Tower]) -> None:
    """Check that no stream is patched within a layer that an edit of the stream enters, where it is read as a sum.

    Raises:
        ValueError: one is.
    """
    edited = {edit.key for tower in towers.values() for edit in tower.edits}
    for site in (site for one in sites for site in one.members if site.component.startswith("resid_mid")):
        if not anatomy.architecture.mid_norm and (site.layer, "resid_pre") in edited:
            raise ValueError(
                f"{site.name} is read as the stream that enters the layer plus what attention adds, and an edit "
                "changes that stream on its way; "
                f"patch L{site.layer}.resid_post, or edit L{site.layer}.resid_mid instead."
            )
