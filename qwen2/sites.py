"""The places in the model where activations can be captured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

HookPoint = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
HOOK_POINTS: tuple[HookPoint, ...] = get_args(HookPoint)
"""Of a layer, in the order of the forward pass: the residual stream before it, what attention adds
to it, the stream between attention and MLP, what the MLP adds to it, the stream after the layer."""

Site = int | str
"""One hook point of one layer. The residual stream after a layer has the layer's number; any other
site has the name that TransformerLens gives it, such as ``blocks.10.hook_mlp_out``."""


def site_of(layer: int, hook_point: HookPoint) -> Site:
    """The site of a layer's hook point."""
    return layer if hook_point == "resid_post" else f"blocks.{layer}.hook_{hook_point}"


def in_forward_order(hook_points: Iterable[str]) -> tuple[HookPoint, ...]:
    """Each hook point once.

    Raises:
      ValueError: if there is none, or one that no layer has.
    """
    chosen = set(hook_points)
    if not chosen or chosen - set(HOOK_POINTS):
        raise ValueError(
            f"hook points must be some of {', '.join(HOOK_POINTS)}, got "
            f"{', '.join(sorted(chosen)) or 'none'}"
        )
    return tuple(point for point in HOOK_POINTS if point in chosen)
