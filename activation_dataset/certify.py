"""Parity certificate: a comparison of some samples of a dataset with Hugging Face transformers.

The reference is the PyTorch model of transformers in float32. It runs one prompt at a time, without
padding. Hooks capture every site except queries, keys and values, which a wrapper of the attention
function captures. This module imports torch and transformers on demand.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import crc32c_of_stream, to_text
from activation_dataset.folder import open_folder
from activation_dataset.format import Pooling
from activation_dataset.metadata import Metadata, RunDescription
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import HookPoint, Site, place_of, site_of
from activation_dataset.storage_dtype import LARGEST_ELEMENT

CERTIFICATE_FILE = "certificate.json"

# Largest relative errors (L2) that rounding alone explains, see docs/reliability.md. In bfloat16,
# 0.045 corresponds to a cosine of 0.999.
_EXACT, _STORED_NARROW, _COMPUTED_NARROW = 1e-4, 5e-3, 4.5e-2

_OF_ATTENTION: tuple[HookPoint, ...] = ("q", "k", "v")

_REFERENCE = "transformers in PyTorch, float32"

# Function from token ids [tokens] to the vectors [tokens, hidden] of each site.
_Reference = Callable[[NDArray[np.int32]], Mapping[Site, NDArray[np.float32]]]


class CertifyError(ValueError):
    """Error for a dataset that cannot be compared. The message gives the reason and the remedy."""


class SiteParity(NamedTuple):
    """Worst agreement of a site's vectors with the reference.

    Attributes:
        relative_error: largest relative error, in the L2 norm.
        cosine: smallest cosine.
    """

    relative_error: float
    cosine: float


def quote_certificate(content: bytes, metadata: Metadata) -> str | None:
    """Return a summary of a certificate.json, or None if it does not belong to this dataset."""
    try:
        value = json.loads(content)
        if value["metadata_sha256"] != _digest_of(metadata):
            return None
        errors = {site: each["relative_error"] for site, each in value["layers"].items()}
        worst = max(errors, key=lambda site: errors[site])
        verdict = "is within" if value["passed"] else "**exceeds**"
        return (
            f"Compared with {_REFERENCE}: {len(value['samples']):,} samples, {value['vectors']:,} "
            f"vectors in each layer. The largest relative error, {errors[worst]:.2e} in layer "
            f"{worst}, {verdict} the tolerance of {value['tolerance']:g}."
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def certify(
    path: str | os.PathLike[str],
    model_path: str | os.PathLike[str],
    samples: int = 16,
    seed: int = 0,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Recompute random samples of a dataset and write certificate.json next to the metadata.

    Args:
        path: dataset, a local folder or a URL that fsspec can open.
        model_path: checkpoint, a local folder in the Hugging Face layout.
        samples: number of samples; all samples if the dataset has fewer.
        seed: seed of the choice of samples.
        tolerance: largest relative error of a vector; None for `default_tolerance`.

    Returns:
        The content of certificate.json.

    Raises:
        DatasetError: if the path has no complete dataset.
        CertifyError: if the model is not the model of the dataset, or no sample can be compared.
        CorruptRecordError: if a chosen record is damaged.
        ImportError: if torch or transformers is not installed.
        OSError: if a file cannot be read, or the certificate cannot be written.
    """
    dataset = ActivationDataset(path)
    run = dataset.metadata.run
    if samples < 1 or not len(dataset):
        raise CertifyError(
            f"no sample to compare: --samples is {samples}, the dataset has {len(dataset)} samples"
        )
    model = Path(model_path)
    reference = _load_reference(model, run)
    chosen = sorted(random.Random(seed).sample(range(len(dataset)), min(samples, len(dataset))))
    parities = dict.fromkeys(run.sites, SiteParity(0.0, 1.0))
    vectors = 0
    for sample in chosen:
        shard, number = dataset.shard_of(sample)
        index = dataset.index(shard)
        end = index.token_ends[number]
        tokens = slice(end - index.token_counts[number], end)
        expected, kept = reference(index.token_ids[tokens]), index.chosen[tokens]
        for site in run.sites:
            stored = np.atleast_2d(dataset.sample(site, sample).activation)
            wanted = pooled(expected[site], run.pooling, kept)
            found, worst = compare(stored, wanted), parities[site]
            error = max(worst.relative_error, found.relative_error)
            parities[site] = SiteParity(error, min(worst.cosine, found.cosine))
        vectors += len(stored)
    weights = {}
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            weights[file.name] = to_text(crc32c_of_stream(stream)[0])
    tolerance = default_tolerance(run) if tolerance is None else tolerance
    certificate = {
        "metadata_sha256": _digest_of(dataset.metadata),
        "reference": _REFERENCE,
        "samples": [dataset.sample_id(each) for each in chosen],
        "vectors": vectors,
        "seed": seed,
        "tolerance": tolerance,
        "passed": all(each.relative_error <= tolerance for each in parities.values()),
        "layers": {str(site): each._asdict() for site, each in parities.items()},
        "weights": weights,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    content = json.dumps(certificate, indent=1, sort_keys=True) + "\n"
    open_folder(path).save(CERTIFICATE_FILE, content.encode())
    return certificate


def default_tolerance(run: RunDescription) -> float:
    """Return the largest relative error that the rounding of a run explains."""
    largest = max(map(run.width, run.sites))
    stored = {
        "float32": 0.0,
        "bfloat16": _STORED_NARROW,
        # Half the spacing of two values: relative to the element, and to the largest element.
        "float8_e4m3": 1 / 16,
        "int8": math.sqrt(largest) / 254,
    }[run.storage_dtype]
    if run.compute_dtype == "float32":
        return max(_EXACT, stored)
    return _COMPUTED_NARROW + (stored if run.storage_dtype in LARGEST_ELEMENT else 0)


def pooled(
    vectors: NDArray[np.float32], pooling: Pooling, chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Pool vectors as a record does.

    Args:
        vectors: [tokens, hidden] float32, vectors of all tokens.
        pooling: pooling of the record.
        chosen: [tokens] bool, True for tokens whose vectors are stored or averaged.

    Returns:
        [vectors, hidden] float64.
    """
    if pooling == "last":
        return vectors[-1:].astype(np.float64)
    wide = vectors[chosen].astype(np.float64)
    return wide.mean(axis=0, keepdims=True) if pooling == "mean" else wide


def compare(stored: NDArray[np.float32], reference: NDArray[np.float64]) -> SiteParity:
    """Return the worst agreement of stored vectors [vectors, hidden] with a reference.

    A non-finite vector on either side has an infinite error.

    Raises:
        CertifyError: if the two shapes differ.
    """
    if stored.shape != reference.shape:
        raise CertifyError(
            f"a record has vectors of shape {stored.shape}, the model returns {reference.shape}: "
            "give the model that computed the dataset"
        )
    ours = stored.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances, norms, expected = (
            np.linalg.norm(each, axis=1) for each in (ours - reference, ours, reference)
        )
        products = (ours * reference).sum(axis=1)
        errors = np.where(distances == 0, 0.0, distances / expected)
        cosines = np.where(distances == 0, 1.0, products / (norms * expected))
    return SiteParity(
        float(np.nan_to_num(errors, nan=np.inf, posinf=np.inf).max()),
        float(np.nan_to_num(cosines, nan=0.0).min()),
    )


def _load_reference(model_path: Path, run: RunDescription) -> _Reference:
    """Load a checkpoint folder with transformers, in float32.

    Hooks capture the vectors, because `hidden_states` has the last layer only after the final norm.
    """
    if not (model_path / "config.json").is_file():
        raise CertifyError(
            f"{model_path} has no config.json: give a local folder in the Hugging Face layout; "
            "python -m qwen.export_preset writes one for a random preset"
        )
    try:
        torch, transformers = import_module("torch"), import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"the reference needs PyTorch and transformers ({error}): run "
            "pip install '.[certify]' in a checkout of the project"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(
        model_path, trust_remote_code=False
    ).get_text_config()
    width, layers, last = config.hidden_size, config.num_hidden_layers, run.layers_extracted[-1]
    if width != run.hidden_dim or layers <= last:
        raise CertifyError(
            f"{model_path} has {layers} layers of width {width}; the dataset has layer {last} and "
            f"width {run.hidden_dim}: give the model that computed the dataset"
        )
    captured: dict[Site, Any] = {}
    model = transformers.AutoModel.from_pretrained(
        model_path,
        dtype=torch.float32,
        attn_implementation=_captured_attention(transformers, captured),
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    text = getattr(model, "language_model", model)
    for site in run.sites:
        layer, hook_point = place_of(site)
        if hook_point not in _OF_ATTENTION:
            _hook(text.layers[layer], hook_point, partial(captured.__setitem__, site))

    def reference(token_ids: NDArray[np.int32]) -> Mapping[Site, NDArray[np.float32]]:
        with torch.no_grad():
            model(torch.from_numpy(token_ids.astype(np.int64))[None], use_cache=False)
        return {site: captured[site].numpy().reshape(len(token_ids), -1) for site in run.sites}

    return reference


def _captured_attention(transformers: Any, captured: dict[Site, Any]) -> str:
    """Register an attention that stores queries, keys and values in `captured`; return its name."""
    attention, masks = transformers.AttentionInterface, transformers.AttentionMaskInterface
    sdpa = attention()["sdpa"]

    def capture(module: Any, *arguments: Any, **options: Any) -> Any:
        for hook_point, heads in zip(_OF_ATTENTION, arguments, strict=False):
            captured[site_of(module.layer_idx, hook_point)] = heads.transpose(1, 2)
        return sdpa(module, *arguments, **options)

    attention.register("captured", capture)
    masks.register("captured", masks()["sdpa"])
    return "captured"


def _hook(layer: Any, hook_point: HookPoint, keep: Callable[[Any], None]) -> None:
    """Register a hook that passes the values of a decoder layer at a hook point to `keep`."""
    mixer = layer.self_attn if hasattr(layer, "self_attn") else layer.linear_attn
    module = {
        "z": mixer.o_proj if hasattr(mixer, "o_proj") else mixer.out_proj,
        "attn_out": mixer,
        "resid_mid": layer.post_attention_layernorm,
        "mlp_in": layer.post_attention_layernorm,
        "router_logits": getattr(layer.mlp, "gate", None),
        "mlp_out": layer.mlp,
    }.get(hook_point, layer)
    if hook_point in ("resid_pre", "z", "resid_mid"):
        module.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
    else:
        module.register_forward_hook(
            lambda _, __, output: keep(output[0] if isinstance(output, tuple) else output)
        )


def _digest_of(metadata: Metadata) -> str:
    digest: str = json.loads(metadata.to_json())["metadata_sha256"]
    return digest
