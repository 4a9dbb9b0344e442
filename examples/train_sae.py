"""Train a sparse autoencoder on a dataset, and write its weights and an HTML report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from activation_dataset import ActivationDataset, CorruptRecordError, DatasetError
from activation_dataset.closed_pipe import until_closed
from activation_dataset.sites import parse_site, site_label
from examples.fit import Fit
from examples.sae_page import sae_page
from examples.sparse_autoencoder import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with status 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_sae", description=__doc__)
    parser.add_argument("dataset", help="dataset, best made with --pooling none")
    parser.add_argument(
        "--layer",
        help="number, or a name such as blocks.10.hook_mlp_out (default: the middle layer)",
    )
    parser.add_argument(
        "--features",
        type=int,
        help="number of features (default: four times the width of the layer)",
    )
    parser.add_argument(
        "--active", type=int, default=8, help="active features per vector (default: 8)"
    )
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    parser.add_argument(
        "--batch_size", type=int, default=1024, help="vectors per step (default: 1024)"
    )
    parser.add_argument(
        "--learning_rate", type=float, default=3e-3, help="peak learning rate (default: 0.003)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, split and order (default: 0)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("sae"), help="folder to write (default: sae)"
    )
    options = parser.parse_args(arguments)
    try:
        _train(options)
    except BrokenPipeError:
        raise
    except (DatasetError, CorruptRecordError, OSError, KeyError, ValueError) as error:
        parser.exit(2, f"error: {error.args[0] if isinstance(error, KeyError) else error}\n")


def _train(options: argparse.Namespace) -> None:
    dataset = ActivationDataset(options.dataset)
    count = len(dataset.layers)
    named = options.layer or dataset.sites[count // 2 - count]  # of the last hook point
    site = dataset.metadata.run.site(parse_site(str(named)))
    settings = Settings(
        features=options.features or 4 * dataset.metadata.run.width(site),
        active=options.active,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    fit = Fit(dataset, site, settings)
    print(f"layer {site_label(site)}: {len(fit.split.train):,} training vectors")
    print(f"held out: {', '.join(fit.split.tasks)}")
    for progress in fit:
        if progress.step % 200 == 0 or progress.step == settings.steps:
            print(f"step {progress.step:5}  explains {progress.explained:.1%}", flush=True)
    result = fit.evaluate()
    print(
        f"{settings.active} of {settings.features} features explain {result.explained:.1%} of "
        f"the variance of {len(fit.held_out):,} held-out vectors,\n"
        f"{settings.active} principal components {result.by_components:.1%}; "
        f"{result.dead} features are dead"
    )
    options.output.mkdir(parents=True, exist_ok=True)
    fit.save(options.output / "sae.safetensors")
    (options.output / "report.html").write_text(sae_page(fit, result), "utf-8")
    print(f"{options.output}/sae.safetensors, {options.output}/report.html")


if __name__ == "__main__":
    sys.exit(until_closed(main))
