"""Sites: the components of a model that can be patched, by their standard names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pyterrier_mechir._options import one_of

COMPONENTS: dict[str, str] = {
    "head": "z",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "resid_pre": "resid_pre",
}
"""Each component and the activation that is replaced to patch it.

``head`` is z, the output of one attention head before the output projection (``attn.hook_z`` in TransformerLens);
``attn_out`` and ``mlp_out`` are what the attention and the MLP add to the residual stream, before the norm that follows
in post-norm models; ``resid_pre`` is the input of a layer.
"""

DIRECTIONS = ("denoise", "noise", "both")


class Site(NamedTuple):
    """One component of one layer; ``head`` is None where the component is the whole layer's."""

    component: str
    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        """``L5H8`` for a head, ``L5.mlp_out`` otherwise."""
        return f"L{self.layer}.{self.component}" if self.head is None else f"L{self.layer}H{self.head}"


class Sites(NamedTuple):
    """The sites of a component or of several, in the shape of the results.

    Args:
        sites: all sites, in the order of the flattened results.
        shape: ``[layer, head]`` for heads, ``[layer]`` for another component, ``[site]`` for a list of components.
        swept: which of the sites are patched, as indices into ``sites``; results are missing elsewhere.
    """

    sites: tuple[Site, ...]
    shape: tuple[int, ...]
    swept: tuple[int, ...]


def _component_names(component: str | Sequence[str]) -> tuple[str, ...]:
    """The components asked for, checked.

    Raises:
        ValueError: an unknown component, or none at all.
    """
    names = (component,) if isinstance(component, str) else tuple(component)
    if not names:
        raise ValueError(f"no component given; choose from {', '.join(map(repr, COMPONENTS))}.")
    return tuple(one_of("component", name, COMPONENTS) for name in names)


def select_sites(
    component: str | Sequence[str],
    n_layers: int,
    n_heads: int,
    heads: Sequence[tuple[int, int]] | None = None,
    layers: Sequence[int] | None = None,
) -> Sites:
    """The sites that a sweep visits.

    Args:
        component: a component, or a list of several.
        n_layers: layers of the model.
        n_heads: heads per layer.
        heads: only these (layer, head); needs ``component="head"``.
        layers: only these layers.

    Raises:
        ValueError: an unknown component, or a layer or head that the model does not have.
    """
    names = _component_names(component)
    if heads is not None and (names != ("head",) or layers is not None):
        raise ValueError('heads=[(layer, head), ...] goes with component="head" and without layers=.')
    sites = tuple(
        Site(name, layer, head)
        for name in names
        for layer in range(n_layers)
        for head in (range(n_heads) if name == "head" else (None,))
    )
    for layer in layers or ():
        if layer not in range(n_layers):
            raise ValueError(f"no layer {layer}: the model has layers 0 to {n_layers - 1}.")
    chosen = None if heads is None else {Site("head", *head) for head in heads}
    for site in chosen or ():
        if site not in sites:
            raise ValueError(
                f"no head ({site.layer}, {site.head}): the model has layers 0 to {n_layers - 1} of heads 0 to "
                f"{n_heads - 1}."
            )
    swept = tuple(
        number
        for number, site in enumerate(sites)
        if (layers is None or site.layer in layers) and (chosen is None or site in chosen)
    )
    if not isinstance(component, str):
        shape: tuple[int, ...] = (len(sites),)
    else:
        shape = (n_layers, n_heads) if component == "head" else (n_layers,)
    return Sites(sites, shape, swept)
