"""A parity certificate: some samples of a dataset, computed again by Hugging Face transformers.

The reference is transformers' own model in PyTorch, in float32, one unpadded prompt at a time, with
a forward hook on each layer. Needs torch and transformers, which nothing else here does.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import extend, to_text
from activation_dataset.folder import open_folder
from activation_dataset.format import Pooling
from activation_dataset.metadata import RunDescription
from activation_dataset.prompts import Prompt, decode_prompt
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import HookPoint, Site, place_of
from activation_dataset.tfrecord import read_records

CERTIFICATE_FILE = "certificate.json"

# Largest relative errors (L2) that rounding alone explains; docs/reliability.md says how they were
# found. In bfloat16, 0.045 is a cosine of 0.999.
_EXACT, _STORED_NARROW, _COMPUTED_NARROW = 1e-4, 5e-3, 4.5e-2

Reference = Callable[[NDArray[np.int32]], Mapping[Site, NDArray[np.float32]]]
"""Token ids [tokens] to site to [tokens, hidden]."""


class CertifyError(ValueError):
    """A dataset that cannot be compared; says why and what to do."""


@dataclass(frozen=True)
class LayerParity:
    """How far a layer's vectors are from the reference, at worst.

    Attributes:
        relative_error: |stored - reference| / |reference|, L2.
        cosine: between the two; 1 where both are zero.
    """

    relative_error: float
    cosine: float


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how well it agrees.

    Attributes:
        metadata_sha256: of the dataset, as its metadata.json gives it.
        samples: ids of those that were computed again.
        vectors: compared in each layer.
        seed: which the samples were drawn with.
        tolerance: largest relative error that passes.
        layers: site to its worst figures.
        weights: name to CRC32C of the files that the reference was loaded from.
        versions: of the packages that computed it.
    """

    metadata_sha256: str
    samples: tuple[str, ...]
    vectors: int
    seed: int
    tolerance: float
    layers: Mapping[Site, LayerParity]
    weights: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def passed(self) -> bool:
        return all(each.relative_error <= self.tolerance for each in self.layers.values())

    def to_json(self) -> str:
        """The text of certificate.json: the same values give the same text."""
        value = asdict(self) | {
            "layers": {str(layer): asdict(each) for layer, each in self.layers.items()},
            "passed": self.passed,
            "reference": "transformers in PyTorch, float32",
        }
        return json.dumps(value, indent=1, sort_keys=True) + "\n"


def certify(
    path: str | os.PathLike[str],
    model_path: str | os.PathLike[str],
    samples: int = 16,
    seed: int = 0,
    tolerance: float | None = None,
) -> Certificate:
    """Computes a random sample of a dataset again and writes its certificate beside the metadata.

    Args:
        path: the dataset: local folder, or a URL that fsspec can open.
        model_path: the checkpoint, a folder in the Hugging Face layout.
        samples: how many samples; all if the dataset has no more.
        seed: of the choice of samples.
        tolerance: largest relative error of a vector; by default what rounding explains.

    Raises:
        DatasetError: there is no complete dataset.
        CertifyError: model and dataset do not belong together, or there is nothing to compare.
        CorruptRecordError: a record that is compared is damaged.
        ImportError: torch or transformers is missing.
        OSError: a file cannot be read, or the certificate not written.
    """
    dataset = ActivationDataset(path)
    run = dataset.metadata.run
    if samples < 1 or not len(dataset):
        raise CertifyError("there is no sample to compare")
    model = Path(model_path)
    reference = load_reference(model, run)
    chosen = sorted(random.Random(seed).sample(range(len(dataset)), min(samples, len(dataset))))
    parities = dict.fromkeys(run.sites, LayerParity(0.0, 1.0))
    ids = []
    vectors = 0
    for index, prompt in zip(chosen, _prompts(dataset, chosen), strict=True):
        ids.append(prompt.sample_id)
        expected = reference(prompt.token_ids)
        for layer in run.sites:
            record = dataset.sample(layer, index)
            if record.sample_id != prompt.sample_id:
                raise CertifyError(
                    f"sample {index} is {record.sample_id!r} in layer {layer} and "
                    f"{prompt.sample_id!r} in the prompts; verify the dataset first"
                )
            stored = np.atleast_2d(record.activation)
            parity = compare(stored, pooled(expected[layer], run.pooling))
            parities[layer] = worse_of(parities[layer], parity)
        vectors += len(stored)
    certificate = Certificate(
        metadata_sha256=json.loads(dataset.metadata.to_json())["metadata_sha256"],
        samples=tuple(ids),
        vectors=vectors,
        seed=seed,
        tolerance=default_tolerance(run) if tolerance is None else tolerance,
        layers=parities,
        weights={file.name: _crc32c(file) for file in sorted(model.glob("*.safetensors"))},
        versions={name: version(name) for name in ("torch", "transformers")},
    )
    open_folder(path).save(CERTIFICATE_FILE, certificate.to_json().encode())
    return certificate


def default_tolerance(run: RunDescription) -> float:
    """The largest relative error that the rounding of a run explains."""
    if run.compute_dtype != "float32":
        return _COMPUTED_NARROW
    return _EXACT if run.storage_dtype == "float32" else _STORED_NARROW


def pooled(vectors: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float64]:
    """[tokens, hidden] to what a record of that pooling holds, [vectors, hidden]."""
    wide = vectors.astype(np.float64)
    if pooling == "last":
        return wide[-1:]
    return wide.mean(axis=0, keepdims=True) if pooling == "mean" else wide


def compare(stored: NDArray[np.float32], reference: NDArray[np.float64]) -> LayerParity:
    """The worst of [vectors, hidden] against the reference of the same shape.

    A vector that is not finite, on either side, has an infinite error.

    Raises:
        CertifyError: the shapes differ.
    """
    if stored.shape != reference.shape:
        raise CertifyError(f"vectors of shape {stored.shape}, the model gives {reference.shape}")
    ours = stored.astype(np.float64)
    finite = np.isfinite(ours).all(axis=1) & np.isfinite(reference).all(axis=1)
    if not finite.all():
        return LayerParity(float("inf"), -1.0)
    norms, expected = (np.linalg.norm(each, axis=1) for each in (ours, reference))
    distances = np.linalg.norm(ours - reference, axis=1)
    errors = np.divide(
        distances, expected, out=np.where(distances > 0, np.inf, 0.0), where=expected > 0
    )
    products = norms * expected
    cosines = np.divide(
        (ours * reference).sum(axis=1),
        products,
        out=np.where(distances > 0, 0.0, 1.0),
        where=products > 0,
    )
    return LayerParity(float(errors.max()), float(cosines.min()))


def worse_of(one: LayerParity, other: LayerParity) -> LayerParity:
    return LayerParity(max(one.relative_error, other.relative_error), min(one.cosine, other.cosine))


def load_reference(model_path: Path, run: RunDescription) -> Reference:
    """transformers' model in float32, from a checkpoint folder.

    Hooks, because its `hidden_states` give the last layer only after the final norm.

    Raises:
        CertifyError: there is no checkpoint, or not one of the dataset's model.
        ImportError: torch or transformers is missing.
    """
    if not (model_path / "config.json").is_file():
        raise CertifyError(
            f"{model_path}: there is no config.json. Give the checkpoint as a local folder in the "
            "Hugging Face layout; python -m qwen.export_preset writes that of a random preset"
        )
    try:
        torch, transformers = import_module("torch"), import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"the reference needs PyTorch and transformers ({error}): "
            "pip install 'qwen-activations[certify]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(model_path, trust_remote_code=False)
    found = (config.hidden_size, config.num_hidden_layers)
    if found[0] != run.hidden_dim or found[1] <= run.layers_extracted[-1]:
        raise CertifyError(
            f"{model_path} has {found[1]} layers, {found[0]} wide; the dataset has layer "
            f"{run.layers_extracted[-1]} and is {run.hidden_dim} wide: give the model it is of"
        )
    model = transformers.AutoModel.from_pretrained(
        model_path,
        dtype=torch.float32,
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    captured: dict[Site, Any] = {}
    for site in run.sites:
        layer, hook_point = place_of(site)
        _hook(model.layers[layer], hook_point, partial(captured.__setitem__, site))

    def reference(token_ids: NDArray[np.int32]) -> Mapping[Site, NDArray[np.float32]]:
        captured.clear()
        with torch.no_grad():
            model(torch.from_numpy(token_ids.astype(np.int64))[None], use_cache=False)
        return {
            site: output.numpy().reshape(len(token_ids), -1) for site, output in captured.items()
        }

    return reference


def _hook(layer: Any, hook_point: HookPoint, keep: Callable[[Any], None]) -> None:
    """Has a decoder layer of transformers hand over what it has at a hook point."""
    match hook_point:
        case "resid_pre":
            layer.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        case "attn_out":
            layer.self_attn.register_forward_hook(lambda _, __, output: keep(output[0]))
        case "resid_mid":
            norm = layer.post_attention_layernorm
            norm.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        case "mlp_out":
            layer.mlp.register_forward_hook(lambda _, __, output: keep(output))
        case "resid_post":
            layer.register_forward_hook(lambda _, __, output: keep(output))


def _prompts(dataset: ActivationDataset, chosen: Sequence[int]) -> Iterator[Prompt]:
    """The prompts of samples, given in ascending order."""
    folder = open_folder(dataset.path)
    wanted = iter(chosen)
    index = next(wanted, None)
    start = 0
    for batch in dataset.metadata.shards:
        end = start + batch.samples
        if index is not None and index < end:
            with folder.open(batch.prompts.path) as stream:
                for number, data in enumerate(read_records(stream, batch.prompts.path), start):
                    if number == index:
                        yield decode_prompt(data)
                        index = next(wanted, None)
        start = end


def _crc32c(path: Path) -> str:
    """CRC32C of a file, as Cloud Storage shows it."""
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc = extend(crc, block)
    return to_text(crc)
