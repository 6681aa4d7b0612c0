"""The split of a model into what trains and what stays frozen; its merge and its table.

    part = partition(model, method.filter(options))
    part.trainable, part.frozen      nested dicts of arrays, the step's arguments
    part.merge(trainable, frozen)    the model again; inside jit and grad

Gradients are taken of the trainable dict alone, so neither the backward pass nor the optimizer
nor a checkpoint ever holds anything of a frozen leaf's size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from flax import nnx

from uniadapter_jax.backbones.attention import Attention
from uniadapter_jax.backbones.fused_attention import Fused
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.parallel.sharding import Weights

_TEMPERATURES = ("logit_scale", "logit_bias", "temp")


@dataclasses.dataclass
class Partition:
    """A model as graph definition, trainable and frozen arrays.

    `weights` says where frozen arrays lie on a mesh; None where they are whole. `fused` is the form
    of attention that the devices have, None the plain one.
    """

    graphdef: Any
    trainable: PyTree
    frozen: PyTree
    _trainable_def: Any
    _frozen_def: Any
    weights: Weights | None = None
    fused: Fused | None = None

    def merge(self, trainable: PyTree, frozen: PyTree) -> Any:
        """The model that holds these arrays; a copy, so it can be made inside a gradient."""
        if self.weights is not None:
            frozen = self.weights.outside_stacks(frozen)
        states = (
            jax.tree.unflatten(treedef, jax.tree.leaves(arrays))
            for treedef, arrays in ((self._trainable_def, trainable), (self._frozen_def, frozen))
        )
        model = nnx.merge(self.graphdef, *states, copy=True)
        if self.weights is not None:
            self.weights.use(model)
        if self.fused is not None:
            for _, module in nnx.iter_modules(model, graph=True):
                if isinstance(module, Attention):
                    module.fused = self.fused
        return model

    def counts(self) -> dict[str, Any]:
        """{trained, total, percent}; parameters that a method added are in the total."""
        trained, frozen = count(self.trainable), count(self.frozen)
        total = trained + frozen
        return {"trained": trained, "total": total, "percent": 100.0 * trained / total}

    def table(self) -> str:
        """The trainable parameters, one row each."""
        if not jax.tree.leaves(self.trainable):
            return "nothing trains"
        return parameter_overview.get_parameter_overview(self.trainable, include_stats=False)


def partition(model: nnx.Module, trainable: Any, dtype: str = "float32") -> Partition:
    """Splits a model by an nnx filter; `None` freezes everything.

    Trainables become float32. Frozen arrays are held in the compute dtype, those of LayerNorm
    and the temperature in float32.

    Raises:
      UserError: the filter matches nothing.
    """
    chosen = trainable if trainable is not None else nnx.Nothing
    graphdef, train, rest = nnx.split(model, chosen, ..., graph=True)  # type: ignore[misc]
    if trainable is not None and not jax.tree.leaves(train):
        raise UserError("the method's filter of trainable parameters matches nothing in this model")
    train_def, rest_def = jax.tree.structure(train), jax.tree.structure(rest)
    frozen = jax.tree.map_with_path(
        lambda path, x: x if _stays_float32(path) else x.astype(dtype), nnx.to_pure_dict(rest)
    )
    trained = jax.tree.map(lambda x: x.astype(jnp.float32), nnx.to_pure_dict(train))
    return Partition(graphdef, trained, frozen, train_def, rest_def)


def _stays_float32(path: tuple[Any, ...]) -> bool:
    keys = [str(entry.key) for entry in path]
    return keys[-1] in _TEMPERATURES or any(_is_norm(key) for key in keys[:-1])


def _is_norm(name: str) -> bool:
    """Whether a module of that name is a LayerNorm: every backbone calls them so."""
    return name == "ln" or name.startswith("ln_")


def count(tree: PyTree) -> int:
    """Entries in all arrays of a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def flat_names(tree: PyTree) -> dict[str, Any]:
    """{dotted path: array} of a nested dict."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}
