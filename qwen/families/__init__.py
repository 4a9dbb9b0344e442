"""Model families: from `config.json` and tensor names to one `ModelConfig` and its parameters.

To add a family, write its module and list it in `FAMILIES`. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen.config import ModelConfig, ModelConfigError
from qwen.families import qwen2
from qwen.families.config_fields import ConfigFields
from qwen.families.parameters import ParameterSource
from qwen.families.tensor_names import LEFT_OUT, PREFIXES, TensorKind


@dataclass(frozen=True)
class Family:
    """What is special about the checkpoints of a family.

    Attributes:
      read_config: reads the fields of a `config.json` that it understands.
      tensor_shapes: names and shapes of all tensors of a checkpoint that transformers saves.
      embedding: the source of the embedding.
      layer_parameters: the source of every parameter of a layer, by the parameter's path.
      layer_prefix: what precedes the tensor names of layer N, with `{}` for N.
      prefixes: what a checkpoint may have in place of `model.`.
      left_out: tensors of a checkpoint that are not read, since no activation depends on them.
    """

    read_config: Callable[[ConfigFields], ModelConfig]
    tensor_shapes: Callable[[ModelConfig], dict[str, tuple[int, ...]]]
    embedding: ParameterSource
    layer_parameters: Mapping[tuple[str, ...], ParameterSource]
    layer_prefix: str = "model.layers.{}."
    prefixes: tuple[str, ...] = PREFIXES
    left_out: tuple[TensorKind, ...] = LEFT_OUT


FAMILIES = {
    "qwen2": Family(
        qwen2.read_config, qwen2.tensor_shapes, qwen2.EMBEDDING, qwen2.LAYER_PARAMETERS
    ),
}
"""By the `model_type` of `config.json`."""


def family_of(config: ModelConfig) -> Family:
    """Return the family of a model."""
    return FAMILIES[config.model_type]


def read_config(
    fields: Mapping[str, Any], source: str = "config.json", ignored: Sequence[str] = ()
) -> ModelConfig:
    """Read the parsed `config.json` of a checkpoint of any supported family.

    Args:
      fields: all fields of the file.
      source: the file, for messages.
      ignored: fields to leave out.

    Raises:
      ModelConfigError: naming `source` and every field that is missing, wrong or not understood.
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
