"""Receivers: where the paths of path patching end."""

from __future__ import annotations

from collections.abc import Sequence

from pyterrier_mechir.models.sites import Shape, Site, Sites, check_site, parse_site

FINAL = "final"
"""The name of the receiver that is the final residual stream: ``resid_post`` of the last layer."""


def parse_receivers(receivers: str | Sequence[str] | None, shape: Shape) -> tuple[Site, ...]:
    """What ``PatchScorer(receivers=...)`` means for a model.

    Args:
        receivers: the names.
        shape: the anatomy of the model.

    Raises:
        ValueError: a name that is neither ``final`` nor that of a head's q, k or v, one that the model lacks, ``final``
            beside others, or none at all.
    """
    if receivers is None:
        return ()
    names = [receivers] if isinstance(receivers, str) else list(receivers)
    if not names:
        raise ValueError("no receivers given; name some, such as 'final', or leave receivers out to patch all paths.")
    if names == [FINAL]:
        return (Site("resid_post", shape.n_layers - 1),)
    if FINAL in names:
        raise ValueError("'final' is a receiver by itself: all others lie before it; give it alone, or leave it out.")
    return tuple(dict.fromkeys(site for name in names for site in _inputs_of_heads(name, shape)))


def names_of(receivers: Sequence[Site]) -> list[str]:
    """The names by which receivers are given."""
    return [FINAL if site.component == "resid_post" else site.name for site in receivers]


def _inputs_of_heads(name: str, shape: Shape) -> tuple[Site, ...]:
    try:
        sites = parse_site(name).members
    except (TypeError, ValueError):
        sites = ()
    if not sites or any(site.component not in ("q", "k", "v") for site in sites):
        raise ValueError(f"{name!r} is no receiver; give 'final', or inputs of heads by name, such as 'L5H8.q'.")
    for site in sites:
        check_site(site, shape)
    return sites


def reaches(layer: int, activation: str, receiver: Site) -> bool:
    """Whether an activation is upstream of a receiver: q, k and v read the stream that enters their layer."""
    if receiver.component == "resid_post":
        return True
    return layer < receiver.layer or (layer == receiver.layer and activation in ("embed", "resid_pre"))


def upstream(sites: Sites, receivers: Sequence[Site]) -> Sites:
    """The sites, of which only those that are upstream of a receiver, or sets with such a site, are swept.

    Raises:
        ValueError: no site is upstream of a receiver.
    """
    if not receivers:
        return sites
    return sites.only(
        lambda site: any(reaches(site.layer, site.component, receiver) for receiver in receivers),
        otherwise=f"no component to patch lies before {', '.join(site.name for site in receivers)}: heads read the "
        "stream that enters their layer; choose components of earlier layers, or later receivers.",
    )
