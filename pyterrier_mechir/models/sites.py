"""Sites: the components of a model that can be patched, by their standard names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.components import _KINDS, _OF_HEAD, ACTIVATIONS, BLOCK, COMPONENTS, FEATURES, PER_HEAD


class Site(NamedTuple):
    """One component of one layer; ``head`` is the head, neuron or feature, None where it is the whole layer's."""

    component: str
    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        """``L5H8`` for a head, ``L5H8.q`` for its queries, ``L5H8.cross`` for one of cross-attention, ``L5N12`` for a
        neuron, ``L5.mlp_out``, ``embed``, or ``L5.resid_post.F12`` for a feature."""
        if self.component in FEATURES:
            return f"L{self.layer}.{self.component.removesuffix('.feature')}.F{self.head}"
        if self.component == "embed":
            return "embed"
        if self.component == "neuron":
            return f"L{self.layer}N{self.head}"
        if self.head is None:
            return f"L{self.layer}.{self.component}"
        return f"L{self.layer}H{self.head}" + _OF_HEAD.get(self.component, f".{self.component}")

    @property
    def parts(self) -> tuple[Site, ...]:
        """The sites that are patched together: this one."""
        return (self,)


class SiteSet(NamedTuple):
    """Several sites that are patched together."""

    parts: tuple[Site, ...]
    component: str = "set"
    layer: None = None
    head: None = None

    @property
    def name(self) -> str:
        """The names of its sites: ``L5H8+L5.mlp_out``."""
        return "+".join(site.name for site in self.parts)


_NAME = re.compile(
    r"L(?P<layer>\d+)(?:H(?P<head>\d+)(?:\.(?P<of_head>(?:cross_)?(?:[qkv]|pattern)|cross))?|N(?P<neuron>\d+)|"
    r"\.(?P<component>\w+)(?:\.F(?P<feature>\d+))?)"
)


def parse_site(name: str) -> Site | SiteSet:
    """The site, or the set of sites, of a name.

    Raises:
        ValueError: it is not the name of a site.
    """
    if "+" in name:
        return SiteSet(tuple(part for one in name.split("+") for part in parse_site(one).parts))
    if name == "embed":
        return Site("embed", 0)
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} names no site; names are like 'L5H8', 'L5H8.q', 'L5N12', 'L5.mlp_out' and 'embed'.")
    layer = int(found["layer"])
    if found["head"]:
        of_head = found["of_head"] or "head"
        return Site("cross_head" if of_head == "cross" else of_head, layer, int(found["head"]))
    if found["neuron"]:
        return Site("neuron", layer, int(found["neuron"]))
    if found["feature"]:
        return Site(one_of("component", f"{found['component']}.feature", FEATURES), layer, int(found["feature"]))
    return Site(one_of("component", found["component"], COMPONENTS), layer)


def activation_of(site: Site, n_layers: int) -> tuple[int, str]:
    """The (layer, activation) that is replaced to patch a site; a stream between two layers has one name."""
    activation = ACTIVATIONS[site.component]
    if activation.startswith("resid_post") and site.layer + 1 < n_layers:
        return site.layer + 1, activation.replace("resid_post", "resid_pre")
    return site.layer, activation


class Sites(NamedTuple):
    """The sites of a component or of several, in the shape of the results.

    Args:
        sites: all sites, or sets of sites, in the order of the flattened results.
        shape: ``[layer, head]`` for components that each head has, ``[layer, neuron]`` for neurons, ``[1]`` for the
            embeddings, ``[layer]`` for any other, ``[site]`` for a list of components or of sets of sites.
        swept: which of the sites are patched, as indices into ``sites``; results are missing elsewhere.
    """

    sites: tuple[Site | SiteSet, ...]
    shape: tuple[int, ...]
    swept: tuple[int, ...]


def _component_names(component: str | Sequence[str]) -> tuple[str, ...]:
    """The components asked for, checked.

    Raises:
        ValueError: an unknown component, or none at all.
    """
    if component == "block":
        return BLOCK
    names = (component,) if isinstance(component, str) else tuple(component)
    if not names:
        raise ValueError(f"no component given; choose from {', '.join(map(repr, COMPONENTS))}.")
    return tuple(one_of("component", name, COMPONENTS if name not in FEATURES else FEATURES) for name in names)


def _site_or_set(entry: Any, component: str) -> Site | SiteSet:
    """What an entry of ``heads`` means: (layer, head), a name, a site, or a list of these."""
    if isinstance(entry, (Site, SiteSet)):
        return entry
    if isinstance(entry, str):
        return parse_site(entry)
    if len(entry) == 2 and all(isinstance(number, (int, np.integer)) for number in entry):
        return Site(component, int(entry[0]), int(entry[1]))
    found = SiteSet(tuple(part for one in entry for part in _site_or_set(one, component).parts))
    if not found.parts:
        raise ValueError("an empty list of heads patches nothing; leave it out, or name what to patch.")
    return found


def check_site(site: Site, n_layers: int, parts: dict[str, int]) -> None:
    """Check that a model has a site.

    Raises:
        ValueError: it does not.
    """
    if site.component in parts:
        what, n = _KINDS.get(site.component, "head"), parts[site.component]
        if site.component in FEATURES and not n:
            raise ValueError(
                f"{site.name} is a feature, but no autoencoder is attached there; patch "
                f"ranker.attach(autoencoder, {site.name.rpartition('.')[0]!r})."
            )
        if site.layer not in range(n_layers) or site.head not in range(n):
            raise ValueError(
                f"no {what} ({site.layer}, {site.head}): the model has layers 0 to {n_layers - 1} of {what}s 0 to "
                f"{n - 1}."
            )
    elif site.layer not in range(n_layers):
        raise ValueError(f"no layer {site.layer}: the model has layers 0 to {n_layers - 1}.")


def select_sites(
    component: str | Sequence[str],
    n_layers: int,
    n_heads: int,
    heads: Sequence[Any] | None = None,
    layers: Sequence[int] | None = None,
    *,
    n_neurons: int = 0,
    n_kv_heads: int | None = None,
    n_features: Mapping[str, int] | None = None,
) -> Sites:
    """The sites that a sweep visits.

    Args:
        component: a component, ``block``, or a list of several.
        n_layers: layers of the model.
        n_heads: heads per layer.
        heads: only these (layer, head), or (layer, neuron); needs one component that has these. With names of sites
            (``"L5.mlp_out"``), or lists of heads and names, which are patched together, the results are flat, a site or
            set after the other.
        layers: only these layers.
        n_neurons: hidden units of each layer's MLP.
        n_kv_heads: heads of keys and values per layer, each of which a group of query heads shares; None where each
            query head has its own.
        n_features: features of the attached autoencoders, by component. They are always named by ``heads``, and the
            results are flat.

    Raises:
        ValueError: an unknown component, or a layer, head or neuron that the model does not have.
    """
    names = _component_names(component)
    parts = dict.fromkeys(PER_HEAD, n_heads) | {"neuron": n_neurons}
    parts |= dict.fromkeys(("k", "v"), n_kv_heads or n_heads)
    parts |= {name: (n_features or {}).get(name, 0) for name in FEATURES}
    if heads is None and FEATURES.keys() & set(names):
        raise ValueError("an autoencoder has too many features to patch all; name some by heads=['L5.resid_post.F12'].")
    if heads is not None and (len(names) != 1 or names[0] not in parts or layers is not None):
        raise ValueError(
            f"heads=[(layer, head), ...] goes with one component of {', '.join(map(repr, parts))} and without layers=."
        )
    for layer in layers or ():
        if layer not in range(n_layers):
            raise ValueError(f"no layer {layer}: the model has layers 0 to {n_layers - 1}.")
    sites = tuple(
        Site(name, layer, part)
        for name in names
        for layer in range(1 if name == "embed" else n_layers)
        for part in (range(parts[name]) if name in parts else (None,))
    )
    chosen: list[Site] | None = None
    if heads is not None:
        entries = [_site_or_set(entry, names[0]) for entry in heads]
        for site in (part for entry in entries for part in entry.parts):
            check_site(site, n_layers, parts)
        if names[0] in FEATURES or any(
            isinstance(entry, str) or not isinstance(entry[0], (int, np.integer)) for entry in heads
        ):
            return Sites(tuple(entries), (len(entries),), tuple(range(len(entries))))
        chosen = [part for entry in entries for part in entry.parts]
    wanted = None if chosen is None else set(chosen)
    swept = tuple(
        number
        for number, site in enumerate(sites)
        if (layers is None or site.layer in layers) and (wanted is None or site in wanted)
    )
    if not isinstance(component, str) or component == "block":
        shape: tuple[int, ...] = (len(sites),)
    elif component == "embed":
        shape = (1,)
    else:
        shape = (n_layers, parts[component]) if component in parts else (n_layers,)
    return Sites(sites, shape, swept)
