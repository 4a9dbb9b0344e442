"""Access to the fields of `config.json`, and refusal of unsupported fields.

A field is refused if no reader reads it and it is not known to be harmless. The lists follow
`PreTrainedConfig` and `GenerationConfig` of transformers 4 and 5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen.config import ModelConfigError

HARMLESS: Mapping[str, str] = {
    "generation": """
        assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
        bos_token_id cache_implementation decoder_start_token_id diversity_penalty do_sample
        early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id
        epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id
        forced_decoder_ids forced_eos_token_id guidance_scale length_penalty max_length
        max_new_tokens max_time min_length min_new_tokens no_repeat_ngram_size
        num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
        num_return_sequences output_scores pad_token_id penalty_alpha prefix remove_invalid_values
        renormalize_logits repetition_penalty return_dict_in_generate sep_token_id stop_strings
        suppress_tokens target_lookbehind temperature top_k top_p typical_p unk_token_id use_cache
    """,
    "training": """
        attention_dropout attn_pdrop chunk_size_feed_forward dropout embd_pdrop
        gradient_checkpointing hidden_dropout initializer_range layerdrop output_router_logits
        pretraining_tp resid_pdrop router_aux_loss_coef use_gradient_checkpointing
    """,
    "bookkeeping": """
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal
        _commit_hash _experts_implementation _flash_attn_2_enabled _name_or_path
        attn_implementation dtype is_decoder model_max_length name_or_path output_attentions
        output_hidden_states return_dict tf_legacy_loss tie_last_hidden_states tokenizer_class
        torch_dtype torchscript transformers_version unsloth_fixed unsloth_version use_bfloat16
        use_return_dict
    """,
    "head": """
        classifier_dropout finetuning_task id2label label2id num_labels problem_type
        task_specific_params
    """,
}
"""Fields that no activation depends on, by purpose."""

_HARMLESS = {name for names in HARMLESS.values() for name in names.split()}

SWITCHED_OFF: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "auto_map": ({}, None),
    "is_causal": (True,),  # transformers treats null as false.
    "is_encoder_decoder": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "per_layer_config": ({}, None),
    "pruned_heads": ({}, None),
    "qk_layernorm": (False, None),
    "tie_encoder_decoder": (False, None),
    "use_bidirectional_attention": (False, None),
    "use_dynamic_ntk": (False, None),
    "use_logn_attn": (False, None),
    "use_mrope": (False, None),
    "use_qk_norm": (False, None),
}
"""Fields that can change activations, with the values that do not change them. For fields that are
not listed, only null does not change activations."""

_QUANTIZED = "the weights are quantized; use the original checkpoint"
_EXPLAINED = {
    "auto_map": "the model has custom code, which is never run",
    "compression_config": _QUANTIZED,
    "is_causal": "tokens would attend to later tokens",
    "per_layer_config": "layers would have different settings",
    "quantization": _QUANTIZED,
    "quantization_config": _QUANTIZED,
    "use_bidirectional_attention": "tokens would attend to later tokens",
}

_LONGEST_VALUE = 80


class ConfigFields:
    """Fields of one JSON object, with a record of the fields that were read."""

    def __init__(self, fields: Mapping[str, Any], ignored: Sequence[str] = ()) -> None:
        """Keep all fields except the ignored ones."""
        self._fields = {name: value for name, value in fields.items() if name not in ignored}
        self._ignored = tuple(ignored)
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a field, or the default if it is absent."""
        self._read.add(name)
        return self._fields.get(name, default)

    def required(self, name: str) -> Any:
        """Return the value of a field.

        Raises:
            ModelConfigError: if the field is absent.
        """
        if name not in self._fields:
            raise ModelConfigError(f"the field {name!r} is missing")
        return self.get(name)

    def positive(self, name: str, default: int | None = None) -> int:
        """Return a positive integer.

        Raises:
            ModelConfigError: if the field is absent and has no default, or is not a positive
                integer.
        """
        value = self.required(name) if default is None else self.get(name, default)
        if type(value) is not int or value <= 0:
            raise ModelConfigError(f"{name} must be a positive integer, got {value!r}")
        return value

    def nested(self, name: str) -> ConfigFields | None:
        """Return the fields of the object in a field; None if the field is absent or null.

        Raises:
            ModelConfigError: if the value is not an object.
        """
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ModelConfigError(f"{name} must be an object, got {value!r}")
        return ConfigFields(value, self._ignored)

    def check_classes(self, pattern: str) -> None:
        """Check that `architectures` names classes of transformers that match `pattern`.

        Raises:
            ModelConfigError: if a class does not match. The message names the class.
        """
        for name in self.get("architectures") or ():
            if not re.fullmatch(pattern, str(name)):
                raise ModelConfigError(
                    f"architectures names {name!r}, which is not a class of this family; if its "
                    "layers are the same as the family's, pass --ignore_config architectures"
                )

    def one_of(self, name: str, default: Any, *allowed: Any) -> Any:
        """Return the value of a field.

        Raises:
            ModelConfigError: if the value is not allowed.
        """
        value = self.get(name, default)
        check_supported(name, value, *allowed)
        return value

    def unread(self) -> list[str]:
        """Return the names of the fields that were not read."""
        return [name for name in self._fields if name not in self._read]

    def refuse_others(self) -> None:
        """Check that every field that was not read is harmless.

        Raises:
            ModelConfigError: if some fields are not harmless. The message names the fields, their
                values and the flag.
        """
        harmless = _HARMLESS | self._read
        refused = {
            name: value
            for name, value in self._fields.items()
            if name not in harmless and value not in SWITCHED_OFF.get(name, (None,))
        }
        if refused:
            raise ModelConfigError(
                "not supported: "
                + "; ".join(_described(name, value) for name, value in refused.items())
                + ". Such fields may change the activations. If they do not, or to extract "
                f"without them, pass --ignore_config {','.join(refused)}"
            )


def check_supported(name: str, value: Any, *allowed: Any) -> None:
    """Check that the value of a field is supported.

    Raises:
        ModelConfigError: if the value is not allowed.
    """
    if value not in allowed:
        raise ModelConfigError(
            f"{name}={value!r} is not supported; supported: " + ", ".join(map(repr, allowed))
        )


def _described(name: str, value: Any) -> str:
    if isinstance(value, Mapping) and "quant_method" in value:
        value = value["quant_method"]
    text = json.dumps(value)
    if len(text) > _LONGEST_VALUE:
        text = text[:_LONGEST_VALUE] + "…"
    return f"{name}={text}" + (f" ({_EXPLAINED[name]})" if name in _EXPLAINED else "")
