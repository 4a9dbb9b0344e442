"""Model families, which map `config.json` and tensor names to a `ModelConfig` and its parameters.

To add a family, write its module and list it in `FAMILIES`. The package does not import JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen.config import ModelConfig, ModelConfigError
from qwen.families import llama, qwen2, qwen3, qwen3_5
from qwen.families.config_fields import ConfigFields
from qwen.families.parameters import Parameters, ParameterSource, layer_parameters, unchanged
from qwen.families.tensor_names import LEFT_OUT, PREFIXES, TensorKind

LAYER_PREFIX = "model.layers.{}."
"""Prefix of the names of a layer's tensors."""


@dataclass(frozen=True)
class Family:
    """Properties of the checkpoints of one family.

    Attributes:
        read_config: function that reads the supported fields of a `config.json`.
        layer_parameters: function that returns the source of every parameter of a layer, by path.
        prefixes: prefixes that a checkpoint may have instead of `model.`.
        left_out: tensors that loading skips because no activation depends on them.
    """

    read_config: Callable[[ConfigFields], ModelConfig]
    layer_parameters: Callable[[ModelConfig, int], Parameters] = layer_parameters
    prefixes: tuple[str, ...] = PREFIXES
    left_out: tuple[TensorKind, ...] = LEFT_OUT

    def embedding(self, config: ModelConfig) -> ParameterSource:
        """Return the source of the embedding."""
        shape = (config.vocab_size, config.hidden_size)
        return ParameterSource((("model.embed_tokens.weight", shape),), unchanged)

    def tensor_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Return the name and the PyTorch shape of every tensor that transformers saves."""
        shapes = dict(self.embedding(config).tensors)
        shapes["model.norm.weight"] = (config.hidden_size,)
        for layer in range(config.num_hidden_layers):
            prefix = LAYER_PREFIX.format(layer)
            for source in self.layer_parameters(config, layer).values():
                shapes |= {prefix + name: shape for name, shape in source.tensors}
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
        return shapes


_QWEN3_5 = Family(qwen3_5.read_config, left_out=(*LEFT_OUT, *qwen3_5.LEFT_OUT))

FAMILIES = {
    "llama": Family(llama.read_config),
    "mistral": Family(llama.read_config),
    "qwen2": Family(qwen2.read_config),
    "qwen3": Family(qwen3.read_config),
    "qwen3_moe": Family(qwen3.read_config),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "qwen3_5_moe_text": _QWEN3_5,
}
"""Families by the `model_type` of `config.json`."""


def family_of(config: ModelConfig) -> Family:
    """Return the family of a model."""
    return FAMILIES[config.model_type]


def read_config(
    fields: Mapping[str, Any], source: str = "config.json", ignored: Sequence[str] = ()
) -> ModelConfig:
    """Read the parsed `config.json` of a checkpoint of any supported family.

    Args:
        fields: all fields of the file.
        source: name of the file for error messages.
        ignored: names of fields to ignore.

    Raises:
        ModelConfigError: if a field is missing, wrong or unsupported. The message names `source`
            and the fields.
    """
    known = ConfigFields(fields, ignored)
    try:
        model_type = known.required("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            supported = ", ".join(map(repr, FAMILIES))
            raise ModelConfigError(
                f"model_type={model_type!r} is not supported; supported: {supported}"
            )
        config = FAMILIES[model_type].read_config(known)
        known.refuse_others()
        return config
    except ModelConfigError as error:
        raise ModelConfigError(f"{source}: {error}") from error
