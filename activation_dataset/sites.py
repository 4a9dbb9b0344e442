"""Sites, the hook points of layers where vectors are captured. Each site has its own folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar, get_args

HookPoint = Literal[
    "resid_pre",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "router_logits",
    "mlp_out",
    "resid_post",
]
HOOK_POINTS: tuple[HookPoint, ...] = get_args(HookPoint)
"""Hook points of a layer, in the order of the forward pass: the residual stream before the layer,
queries and keys after RoPE, values, the heads before the output projection, the attention output,
the residual stream between attention and MLP, the normalized input of the MLP, the scores of the
experts, the output of the MLP, and the residual stream after the layer."""

_HOOK_NAMES: dict[str, str] = {str(point): f"hook_{point}" for point in HOOK_POINTS} | {
    "q": "attn.hook_rot_q",
    "k": "attn.hook_rot_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "mlp_in": "mlp.hook_in",
    "router_logits": "mlp.gate.hook_out",
}
"""TransformerLens names within a block. `mlp_in` is not `ln2.hook_normalized`, which is the value
before the scale of the norm."""

_STREAM_HOOK_POINTS = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")

DEFAULT_HOOK_POINT: HookPoint = "resid_post"

Row = TypeVar("Row")

Site = int | str
"""One hook point of one layer: the layer number for the residual stream after the layer, and the
TransformerLens name, such as "blocks.10.hook_mlp_out", for any other hook point."""

_NUMBER = r"(0|[1-9]\d{0,8})"
_POINT_OF = {name: point for point, name in _HOOK_NAMES.items()}
_SITE = re.compile(rf"{_NUMBER}|blocks\.{_NUMBER}\.({'|'.join(map(re.escape, _POINT_OF))})")


def site_of(layer: int, hook_point: HookPoint) -> Site:
    """Return the site of a hook point of a layer."""
    return layer if hook_point == DEFAULT_HOOK_POINT else _name(layer, hook_point)


def _name(layer: int, hook_point: HookPoint) -> str:
    return f"blocks.{layer}.{_HOOK_NAMES[hook_point]}"


def sites_of(layers: Sequence[int], hook_points: Sequence[HookPoint]) -> tuple[Site, ...]:
    """Return the sites of all layers at the first hook point, then at the second, and so on."""
    return tuple(site_of(layer, hook_point) for hook_point in hook_points for layer in layers)


def parse_site(text: str) -> Site:
    """Parse a layer number or the TransformerLens name of a site.

    Raises:
        ValueError: if the text is neither.
    """
    return site_of(*place_of(text))


def place_of(site: Site) -> tuple[int, HookPoint]:
    """Return the layer and hook point of a site.

    Raises:
        ValueError: if the name is invalid.
    """
    if isinstance(site, int):
        return site, DEFAULT_HOOK_POINT
    match = _SITE.fullmatch(site)
    if match is None:
        raise ValueError(
            f"{site!r} is neither a layer number nor a name such as 'blocks.10.hook_mlp_out'"
        )
    number, layer, name = match.groups()
    return int(number or layer), _POINT_OF[name] if name else DEFAULT_HOOK_POINT  # type: ignore[return-value]


def hook_name(site: Site) -> str:
    """Return the TransformerLens name of a site, such as "blocks.10.hook_resid_post"."""
    return _name(*place_of(site))


def site_label(site: Site) -> str:
    """Return the label of a site in a table or chart, such as "10" or "10 mlp_out"."""
    layer, hook_point = place_of(site)
    return str(layer) if hook_point == DEFAULT_HOOK_POINT else f"{layer} {hook_point}"


def site_labels(sites: Sequence[Site]) -> list[str]:
    """Return labels of sites, such as "10", or "10 resid_post" if there are other hook points."""
    if all(place_of(site)[1] == DEFAULT_HOOK_POINT for site in sites):
        return [site_label(site) for site in sites]
    return [f"{layer} {hook_point}" for layer, hook_point in map(place_of, sites)]


def basis_of(site: Site) -> str:
    """Return the basis of a site's vectors: "" for the residual stream, else the hook point."""
    hook_point = place_of(site)[1]
    return "" if hook_point in _STREAM_HOOK_POINTS else hook_point


def layers_named(sites: Sequence[Site]) -> str:
    """Return the layers of sites as text, with ranges: "0, 4, 8-11; 10-23 mlp_out"."""
    parts = []
    for hook_point in dict.fromkeys(place_of(site)[1] for site in sites):
        layers = [layer for layer, each in map(place_of, sites) if each == hook_point]
        starts = [layer for layer in layers if layer - 1 not in layers]
        ends = [layer for layer in layers if layer + 1 not in layers]
        ranges = (f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))
        suffix = "" if hook_point == DEFAULT_HOOK_POINT else f" {hook_point}"
        parts.append(", ".join(ranges) + suffix)
    return "; ".join(parts)


def by_hook_point(sites: Sequence[Site], rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the rows of a table, one for each site, by hook point.

    If all sites have the same hook point, the only group has an empty name.
    """
    groups: dict[str, list[Row]] = {}
    for site, row in zip(sites, rows, strict=True):
        groups.setdefault(place_of(site)[1], []).append(row)
    return groups if len(groups) > 1 else {"": list(rows)}


def forward_order(site: Site) -> tuple[int, int]:
    """Return the key that sorts sites by hook point and then by layer."""
    layer, hook_point = place_of(site)
    return HOOK_POINTS.index(hook_point), layer


def in_forward_order(hook_points: Iterable[str]) -> tuple[HookPoint, ...]:
    """Sort hook points and remove duplicates.

    Raises:
        ValueError: if a hook point is unknown, or `hook_points` is empty.
    """
    chosen = set(hook_points)
    if not chosen or chosen - set(HOOK_POINTS):
        raise ValueError(
            f"hook points must be some of {', '.join(HOOK_POINTS)}, got "
            f"{', '.join(sorted(chosen)) or 'none'}"
        )
    return tuple(point for point in HOOK_POINTS if point in chosen)
