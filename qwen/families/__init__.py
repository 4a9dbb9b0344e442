"""Model families: from `config.json` and tensor names to one `ModelConfig` and its parameters.

To add a family, write its module and list it in `FAMILIES`. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwen.config import ModelConfig, ModelConfigError
from qwen.families import qwen2, qwen3, qwen3_5, qwen3_moe
from qwen.families.parameters import Parameters, ParameterSource, unchanged


@dataclass(frozen=True)
class Family:
    """What is special about the checkpoints of a family.

    Attributes:
      read_config: reads a parsed `config.json`.
      layer_parameters: gives the source of every parameter of a layer, by the parameter's path.
    """

    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    layer_parameters: Callable[[ModelConfig, int], Parameters]

    def embedding(self, config: ModelConfig) -> ParameterSource:
        """Return the source of the embedding."""
        shape = (config.vocab_size, config.hidden_size)
        return ParameterSource((("model.embed_tokens.weight", shape),), unchanged)

    def tensor_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Return every tensor of a checkpoint, with its shape as PyTorch lays it out."""
        shapes = dict(self.embedding(config).tensors)
        shapes["model.norm.weight"] = (config.hidden_size,)
        for layer in range(config.num_hidden_layers):
            for source in self.layer_parameters(config, layer).values():
                shapes |= {LAYER_PREFIX.format(layer) + name: size for name, size in source.tensors}
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
        return shapes


LAYER_PREFIX = "model.layers.{}."
"""What precedes the names of a layer's tensors."""

FAMILIES = {
    "qwen2": Family(qwen2.read_config, qwen2.layer_parameters),
    "qwen3": Family(qwen3.read_config, qwen2.layer_parameters),
    "qwen3_moe": Family(qwen3.read_config, qwen3_5.layer_parameters),
    "qwen3_5_text": Family(qwen3_5.read_config, qwen3_5.layer_parameters),
    "qwen3_5_moe_text": Family(qwen3_5.read_config, qwen3_5.layer_parameters),
}
"""By the `model_type` of `config.json`."""


def family_of(config: ModelConfig) -> Family:
    """Return the family of a model."""
    return FAMILIES[config.model_type]


def read_config(fields: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Read the parsed `config.json` of a checkpoint of any supported family.

    Raises:
      ModelConfigError: naming `source` and the field that is missing, wrong or unsupported.
    """
    try:
        if "model_type" not in fields:
            raise ModelConfigError("the field 'model_type' is missing")
        model_type = fields["model_type"]
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            supported = ", ".join(map(repr, FAMILIES))
            raise ModelConfigError(
                f"model_type={model_type!r} is not supported; supported: {supported}"
            )
        config = FAMILIES[model_type].read_config(fields)
        return replace(config, model_type=model_type)
    except ModelConfigError as error:
        raise ModelConfigError(f"{source}: {error}") from error
