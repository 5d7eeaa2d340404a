"""Sites: the components of a model that can be patched, by their standard names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.components import ACTIVATIONS, BLOCK, CODED_COMPONENTS, COMPONENTS, PER_HEAD, TABLE

_IN_PARTS = (*PER_HEAD, "neuron", *CODED_COMPONENTS)
"""Components of which a layer has several."""


class Shape(Protocol):
    """What has layers, such as an :class:`~pyterrier_mechir.models.anatomy.Anatomy`."""

    n_layers: int

    def groups(self, activation: str) -> int:
        """How many heads, groups of heads, neurons or features an activation of a layer is made of; 1 for the whole."""


class Site(NamedTuple):
    """One component of one layer.

    Args:
        component: its name, from :data:`~pyterrier_mechir.models.components.TABLE`.
        layer: the layer.
        number: of the head, neuron or feature; None where the site is the whole layer's.
    """

    component: str
    layer: int
    number: int | None = None

    @property
    def name(self) -> str:
        """``L5H8`` for a head, ``L5H8.q`` for its queries, ``L5H8.cross`` for one of cross-attention, ``L5N12`` for a
        neuron, ``L5.mlp_out``, ``embed``, or ``L5.resid_post.F12`` for a feature."""
        return TABLE[self.component].written.format(layer=self.layer, number=self.number)

    @property
    def members(self) -> tuple[Site, ...]:
        """The sites that are patched together: this one."""
        return (self,)


class SiteSet(NamedTuple):
    """Several sites that are patched together."""

    members: tuple[Site, ...]
    component: str = "set"
    layer: None = None
    number: None = None

    @property
    def name(self) -> str:
        """The names of its sites: ``L5H8+L5.mlp_out``."""
        return "+".join(site.name for site in self.members)


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
        return SiteSet(tuple(site for one in name.split("+") for site in parse_site(one).members))
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
        component = one_of("component", f"{found['component']}.feature", CODED_COMPONENTS)
        return Site(component, layer, int(found["feature"]))
    return Site(one_of("component", found["component"], COMPONENTS), layer)


def name_of_head(head: str | Sequence[int]) -> str:
    """The name of a head that is given by name or as (layer, head): ``L5H8``."""
    return head if isinstance(head, str) else TABLE["head"].written.format(layer=head[0], number=head[1])


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

    @property
    def patched(self) -> list[Site | SiteSet]:
        """The sites that are patched."""
        return [self.sites[number] for number in self.swept]

    @property
    def patched_components(self) -> list[str]:
        """The components of the sites that are patched, those of sets one by one, in order of appearance."""
        return list(dict.fromkeys(site.component for one in self.patched for site in one.members))

    def only(self, comes_before: Callable[[Site], bool], otherwise: str) -> Sites:
        """These sites, of which only those that come before something, or sets with such a site, are patched.

        Args:
            comes_before: whether a site does.
            otherwise: what the error says where none does.

        Raises:
            ValueError: none does.
        """
        swept = tuple(number for number in self.swept if any(map(comes_before, self.sites[number].members)))
        if not swept:
            raise ValueError(otherwise)
        return self._replace(swept=swept)


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
    return tuple(
        one_of("component", name, COMPONENTS if name not in CODED_COMPONENTS else CODED_COMPONENTS) for name in names
    )


def _site_or_set(entry: Any, component: str) -> Site | SiteSet:
    """What an entry of ``heads`` means: (layer, head), a name, a site, or a list of these."""
    if isinstance(entry, (Site, SiteSet)):
        return entry
    if isinstance(entry, str):
        return parse_site(entry)
    if _is_pair(entry):
        return Site(component, int(entry[0]), int(entry[1]))
    found = SiteSet(tuple(site for one in entry for site in _site_or_set(one, component).members))
    if not found.members:
        raise ValueError("an empty list of heads patches nothing; leave it out, or name what to patch.")
    return found


def _is_pair(entry: Any) -> bool:
    return len(entry) == 2 and all(isinstance(number, (int, np.integer)) for number in entry)


def check_site(site: Site, shape: Shape) -> None:
    """Check that a model has a site.

    Args:
        site: the site.
        shape: the anatomy of the model.

    Raises:
        ValueError: the model has no such component, layer, head, neuron or feature.
    """
    n_layers = shape.n_layers
    if site.component in _IN_PARTS:
        what, n = TABLE[site.component].part, shape.groups(ACTIVATIONS[site.component])
        if site.component in CODED_COMPONENTS and not n:
            raise ValueError(
                f"{site.name} is a feature, but no autoencoder is attached there; patch "
                f"ranker.attach(autoencoder, {site.name.rpartition('.')[0]!r})."
            )
        if site.layer not in range(n_layers) or site.number not in range(n):
            raise ValueError(
                f"no {what} ({site.layer}, {site.number}): the model has layers 0 to {n_layers - 1} of {what}s 0 to "
                f"{n - 1}."
            )
    elif site.layer not in range(n_layers):
        raise ValueError(f"no layer {site.layer}: the model has layers 0 to {n_layers - 1}.")


def select_sites(
    component: str | Sequence[str],
    shape: Shape,
    heads: Sequence[Any] | None = None,
    layers: Sequence[int] | None = None,
) -> Sites:
    """The sites that a sweep visits.

    Args:
        component: a component, ``block``, or a list of several.
        shape: the anatomy of the model.
        heads: only these (layer, head), or (layer, neuron); needs one component that has these. With names of sites
            (``"L5.mlp_out"``), or lists of heads and names, which are patched together, the results are flat, a site or
            set after the other. Features of autoencoders are always named here, and the results are flat.
        layers: only these layers.

    Raises:
        ValueError: an unknown component, or a layer, head or neuron that the model does not have.
    """
    names, n_layers = _component_names(component), shape.n_layers
    if heads is None and CODED_COMPONENTS.keys() & set(names):
        raise ValueError("an autoencoder has too many features to patch all; name some by heads=['L5.resid_post.F12'].")
    if heads is not None and (len(names) != 1 or names[0] not in _IN_PARTS or layers is not None):
        raise ValueError(
            f"heads=[(layer, head), ...] goes with one component of {', '.join(map(repr, _IN_PARTS))} and without "
            "layers=."
        )
    for layer in layers or ():
        if layer not in range(n_layers):
            raise ValueError(f"no layer {layer}: the model has layers 0 to {n_layers - 1}.")
    wanted: set[Site] | None = None
    if heads is not None:
        entries = [_site_or_set(entry, names[0]) for entry in heads]
        members = [site for entry in entries for site in entry.members]
        for site in members:
            check_site(site, shape)
        is_flat = any(isinstance(entry, str) or not isinstance(entry[0], (int, np.integer)) for entry in heads)
        if is_flat or names[0] in CODED_COMPONENTS:
            return Sites(tuple(entries), (len(entries),), tuple(range(len(entries))))
        wanted = set(members)
    n_parts = {name: shape.groups(ACTIVATIONS[name]) for name in names if name in _IN_PARTS}
    sites = tuple(
        Site(name, layer, number)
        for name in names
        for layer in range(1 if name == "embed" else n_layers)
        for number in (range(n_parts[name]) if name in n_parts else (None,))
    )
    swept = tuple(
        number
        for number, site in enumerate(sites)
        if (layers is None or site.layer in layers) and (wanted is None or site in wanted)
    )
    if not isinstance(component, str) or component == "block":
        return Sites(sites, (len(sites),), swept)
    if component == "embed":
        return Sites(sites, (1,), swept)
    return Sites(sites, (n_layers, n_parts[component]) if component in n_parts else (n_layers,), swept)
