"""Runs at hook points whose vectors differ in width, from the flags to the readers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from activation_dataset.__main__ import main as dataset_main
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import HOOK_POINTS, HookPoint, place_of, site_of
from beam_pipeline.command import main
from qwen.extractor import ActivationExtractor
from qwen.families import family_of, read_config
from tests.end_to_end.job import digests, error_of, flags_of, metadata_of, problems_of, run
from tests.qwen.checkpoints import add_tokenizer, varied_weights, write_files

SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
SPARSE = SHAPE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 12,
    "moe_intermediate_size": 16,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "rope_theta": 1e4,
}
HYBRID = SHAPE | {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
WIDTHS: dict[HookPoint, int] = dict.fromkeys(HOOK_POINTS, 32)
WIDTHS |= {"q": 48, "k": 24, "v": 24, "z": 48, "router_logits": 5}

FLAGS = ("--layers_to_extract", "0-2", "--compute_dtype", "float32", "--pooling", "none")
MORE = ("--samples_per_shard", "3", "--hook_points")
K, Q = "blocks.1.attn.hook_rot_k", "blocks.1.attn.hook_rot_q"


def written(folder: Path, fields: dict[str, Any]) -> Path:
    """Return a checkpoint of a published config.json, with the shipped tokenizer."""
    config = read_config(fields)
    tensors = varied_weights(config)
    assert tensors.keys() == family_of(config).tensor_shapes(config).keys()
    return add_tokenizer(write_files(folder, fields, tensors))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("models") / "sparse", SPARSE)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("models") / "hybrid", HYBRID)


@pytest.fixture(scope="module")
def out(sparse: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many_widths") / "out"
    run(sparse, short_tasks, folder, *FLAGS, *MORE, *HOOK_POINTS)
    return folder


def test_every_site_has_what_the_extractor_gives(sparse: Path, out: Path):
    assert problems_of(out) == []
    dataset = ActivationDataset(out)
    described = dataset.metadata.run
    assert {site: described.width(site) for site in dataset.sites} == {
        site_of(layer, point): width for point, width in WIDTHS.items() for layer in range(3)
    }
    assert all(width != 32 for width in described.widths.values())
    extractor = ActivationExtractor.load(
        sparse, "all", pooling="none", compute_dtype="float32", hook_points=HOOK_POINTS
    )
    (alone,) = extractor.extract([dataset[0][1].token_ids])
    for site in dataset.sites:
        found, expected = dataset[site][1].activation, alone.vectors[site]
        assert found.shape == (len(dataset[0][1].token_ids), WIDTHS[place_of(site)[1]])
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_sites_of_one_width_are_read_together_and_others_in_the_same_order(out: Path):
    dataset = ActivationDataset(out)
    with pytest.raises(ValueError, match=r"several widths, .*hook_rot_q': 48, .*: read each"):
        dataset.batches([Q, K], 16)
    values = next(iter(dataset.batches([K, "blocks.2.attn.hook_v"], 16))).values
    assert values.shape == (16, 2, 24)
    of_stream, of_queries, of_experts = (
        list(dataset.batches(site, 16, seed=5, window=64))
        for site in (1, Q, "blocks.1.mlp.gate.hook_out")
    )
    for stream, queries, experts in zip(of_stream, of_queries, of_experts, strict=True):
        assert np.array_equal(stream.numbers, queries.numbers)
        assert np.array_equal(stream.numbers, experts.numbers)
        whole = dataset[Q][int(queries.places.samples[0])]
        assert np.array_equal(queries.values[0], whole.activation[queries.places.positions[0]])
    blocks = np.concatenate([block.values for block in dataset.blocks(Q)])
    for number in of_queries[0].numbers[:3]:
        origin = dataset.trace(int(number))
        assert np.array_equal(blocks[number], dataset[Q][origin.sample].activation[origin.position])


def test_exports_and_reports_know_the_width(out: Path, tmp_path: Path, capsys):
    command = ["export", str(out), str(tmp_path / "k"), "--layer", K, "--to", "safetensors"]
    assert dataset_main(command) == 0
    (file,) = (tmp_path / "k").glob("layer_1_k-*.safetensors")
    dataset = ActivationDataset(out)
    assert load_file(file)["activations"].shape == (dataset.num_vectors, 24)
    command = ["export", str(out), str(tmp_path / "q"), "--layer", Q, "--to", "dictionary_learning"]
    assert dataset_main([*command, "--batch_size", "64"]) == 0
    (file,) = (tmp_path / "q").glob("*.safetensors")
    assert load_file(file)["activations"].shape[1:] == (64, 48)
    capsys.readouterr()
    assert dataset_main(["inspect", str(out)]) == 0
    assert "q 48, k 24, v 24, z 48" in capsys.readouterr().out
    assert dataset_main(["report", str(out), "-o", str(tmp_path / "report.html")]) == 0
    assert "router_logits 5" in (tmp_path / "report.html").read_text()


def test_the_size_is_known_before(sparse, short_tasks, out, tmp_path, capsys):
    assert main(["plan", *flags_of(sparse, short_tasks, tmp_path, (*FLAGS, *MORE, "q", "k"))]) == 0
    folders = [out / f"layer_{layer}_{point}" for layer in range(3) for point in "qk"]
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    assert f"{size:,} of the layers" in capsys.readouterr().out
    limit = ("--max_output_bytes", str(size))
    error = error_of(capsys, sparse, short_tasks, tmp_path / "out", *FLAGS, *limit, *MORE, "q", "k")
    assert f"{size:,} in 6 layer folders" in error


def test_a_missing_file_of_another_width_is_written_again(sparse, short_tasks, out: Path):
    before = digests(out)
    (out / "layer_2_router_logits" / "activations-00001-of-00002.tfrecord").unlink()
    run(sparse, short_tasks, out, *FLAGS, *MORE, *HOOK_POINTS)
    shutil.rmtree(out / "index", ignore_errors=True)
    assert digests(out) == {k: v for k, v in before.items() if not k.startswith("index/")}


@pytest.mark.parametrize(
    ("layers", "point", "message"),
    [
        ("0-2", "q", "no q in the layers 0, 2; extract only layers that have it, 1, or"),
        ("1", "router_logits", "no router_logits in the layers 1; leave out router_logits"),
    ],
)
def test_a_hook_point_that_layers_lack_is_refused(
    hybrid, short_tasks, tmp_path, capsys, layers: str, point: str, message: str
):
    flags = ("--layers_to_extract", layers, "--hook_points", "resid_post", point)
    error = error_of(capsys, hybrid, short_tasks, tmp_path / "out", *flags)
    assert "hook_points: " in error
    with pytest.raises(ValueError, match=message):
        ActivationExtractor.load(hybrid, range(3) if layers == "0-2" else [1], hook_points=(point,))


@pytest.fixture(scope="module")
def hybrid_out(hybrid: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid") / "out"
    run(hybrid, short_tasks, folder, *FLAGS, *MORE, "z,attn_out,mlp_in")
    return folder


def test_one_hook_point_may_have_several_widths(hybrid_out: Path):
    assert problems_of(hybrid_out) == []
    described = metadata_of(hybrid_out).run
    assert [described.width(f"blocks.{layer}.attn.hook_z") for layer in range(3)] == [48, 64, 48]


@pytest.mark.torch
def test_transformers_certifies_every_site(sparse, out, hybrid, hybrid_out):
    from activation_dataset.certify import certify

    for model, folder in ((sparse, out), (hybrid, hybrid_out)):
        certificate = certify(folder, model, samples=2)
        assert certificate["passed"], certificate["layers"]
        sites = ActivationDataset(folder).sites
        assert list(certificate["layers"]) == [str(site) for site in sites]
