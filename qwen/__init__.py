"""Qwen in JAX and Flax, with activations captured at hook points of chosen layers."""

from typing import TYPE_CHECKING, Any

from qwen.settings import ExtractorSettings, open_extractor

if TYPE_CHECKING:
    from qwen.extractor import ActivationExtractor, CapturedSamples

__all__ = ["ActivationExtractor", "CapturedSamples", "ExtractorSettings", "open_extractor"]


def __getattr__(name: str) -> Any:
    """Load JAX only when the extractor is asked for: launchers must not touch devices."""
    if name in ("ActivationExtractor", "CapturedSamples"):
        from qwen import extractor

        return getattr(extractor, name)
    raise AttributeError(f"module 'qwen' has no attribute {name!r}")
