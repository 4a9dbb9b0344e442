"""Qwen in JAX and Flax, with activations captured at hook points of chosen layers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen.captured import CapturedSamples
    from qwen.extractor import ActivationExtractor, open_extractor

__all__ = ["ActivationExtractor", "CapturedSamples", "open_extractor"]


def __getattr__(name: str) -> Any:
    """Import the extractor, and with it JAX, on first use: launchers must not touch devices."""
    if name in __all__:
        from qwen import extractor

        return getattr(extractor, name)
    raise AttributeError(f"module 'qwen' has no attribute {name!r}")
