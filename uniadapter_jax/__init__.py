"""Adapters for frozen vision-language models, in JAX.

    model = load_model("backbone/", "adapter/")    or names on the hub, such as
                                                   "openai/clip-vit-large-patch14"
    model.encode_video("film.mp4")                 also encode_files, encode_text, similarity, ...
    index = Index.open("INDEX")                    search("a red car turns left"), item(id)

`uniadapter_jax.testing` is for people who port weights. Commands, each with --help, as `python -m
uniadapter_jax.NAME`: prepare, main, compare, export, index, search, serve, convert, plan, demo,
benchmark, look.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uniadapter_jax.inference.blip_model import AdaptedBLIP
    from uniadapter_jax.inference.load import load_model
    from uniadapter_jax.inference.model import AdaptedModel
    from uniadapter_jax.inference.search.index import Index

__version__ = "0.2.0"
_MODULES = ("config", "testing")  # of the package, also without an import of their own
__all__ = ["AdaptedBLIP", "AdaptedModel", "Index", "__version__", "load_model"]


if sys.argv[:1] == ["-m"]:  # Python sets this while it looks up one of our commands
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()


def __getattr__(name: str) -> Any:
    """Imports JAX only when it is needed: `import uniadapter_jax` takes milliseconds."""
    if name in ("AdaptedBLIP", "AdaptedModel", "load_model"):
        from uniadapter_jax.inference import load

        return getattr(load, name)
    if name == "Index":
        from uniadapter_jax.inference.search.index import Index

        return Index
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is, whether it has been imported or not."""
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
