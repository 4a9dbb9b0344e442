"""Qwen2 in JAX and Flax, with the residual stream captured layer by layer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen.extractor import ActivationExtractor, CapturedSamples

__all__ = ["ActivationExtractor", "CapturedSamples"]


def __getattr__(name: str) -> Any:
    """Loads JAX only when the extractor is asked for: launchers must not touch devices."""
    if name in __all__:
        from qwen import extractor

        return getattr(extractor, name)
    raise AttributeError(f"module 'qwen' has no attribute {name!r}")
