"""Training that begins from an adapter, exported by another run: `config.init_from`."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.weights.adapter_directory import check_tensors, read_adapter
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.needed import ADAPTER


def begin_from(config: ConfigDict, trainable: PyTree, backbone: str) -> tuple[PyTree, str]:
    """The trainable parameters with the adapter's values, and the adapter's fingerprint.

    Args:
      trainable: of the run's own method, whose values are replaced.
      backbone: the fingerprint of the run's backbone.

    Raises:
      UserError: no adapter is there, or one of another method, of other shapes or for another
        backbone; both sides are named.
    """
    where = f"config.init_from={config.init_from}"
    directory = pathlib.Path(located(config.init_from, "config.init_from", ADAPTER).directory)
    if not directory.is_dir():
        raise UserError(f"{where} is no directory; `export --workdir=RUN --to=DIR` makes one")
    adapter = read_adapter(directory)
    if adapter.method != config.method.name:
        raise UserError(
            f"{where} is an adapter of {adapter.method}, and config.method.name is "
            f"{config.method.name}: begin from one of the same method"
        )
    if adapter.fingerprint != backbone:
        raise UserError(
            f"{where} belongs to a backbone of fingerprint {adapter.fingerprint}, "
            f"config.backbone={config.backbone} has {backbone}"
        )
    check_tensors(where, adapter.tensors, flat_names(trainable))
    values = jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(
            adapter.tensors[".".join(entry.key for entry in path)], leaf.dtype
        ),
        trainable,
    )
    return values, _digest(adapter.tensors)


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
        total.update(tensor.tobytes())
    return total.hexdigest()
