"""The sharding of weights over the mesh: a table from the path of a parameter to its partition.

    weights = Weights.of(config.mesh, mesh, model_config)
    frozen = weights.put(part.frozen)                     sharded by `RULES`
    part = dataclasses.replace(part, weights=weights)     gathered again where they are used

`tensor` shards the towers as Megatron-LM does (Shoeybi et al., 2019, section 3): q, k, v and fc1 by
their outputs, so that a device has complete heads and a share of the hidden units, out and fc2 by
their inputs. `fsdp` shards weights at rest (ZeRO, Rajbhandari et al., 2020, stage 3): the scan
gathers the weights of a layer when it reaches the layer, again for the gradient, and never keeps
them.

An axis that does not divide over its axis of the mesh is not sharded. Trainables are always
replicated: an adapter is small, and this package is not meant for `method=full` on a large mesh.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uniadapter_jax.backbones.scan import Stack
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import PyTree

WEIGHTS = ("replicated", "sharded")  # values of `config.mesh.weights`

_INPUT, _HIDDEN = r"((attn|cross)\.[qkv]|fc1)", r"((attn|cross)\.out|fc2)"
_PLACES = r"prompts|(after|beside)_\w+|cross_key|cross_value|before|side|joins|delta|reweighted"

# (the end of a parameter's path, the axes of the mesh that shard its last axes). Leading axes, such
# as that of layers, are never sharded. Methods come first: a path through one of their places, or
# through `adapters`, belongs to them, whatever its end.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (rf"(adapters|{_PLACES})\.[\w.]+", ()),
    (rf"{_INPUT}\.kernel", ("fsdp", "tensor")),
    (rf"{_INPUT}\.bias", ("tensor",)),
    (rf"{_HIDDEN}\.kernel", ("tensor", "fsdp")),
    (rf"{_HIDDEN}\.bias", ()),  # too small for a gather
    (r"(token|position|class)_embedding", ("fsdp",)),
    (r"patch_embedding\.kernel", ("fsdp",)),
    (r"patch_embedding\.bias", ()),
    (r"ln(_\w+)?\.(scale|bias)", ()),
    (r"logit_scale|logit_bias|temp", ()),
    (r"probe", ()),
    (r"(projection|vision_proj|text_proj|itm_head|decoder_head\.dense)\.(kernel|bias)", ()),
    (r"decoder_head\.bias", ()),
)
_COMPILED = tuple((re.compile(rf"(.*\.)?({pattern})"), axes) for pattern, axes in RULES)


def axes_of(path: str) -> tuple[str | None, ...]:
    """The axes of the mesh that shard the last axes of the parameter with this dotted path.

    Raises:
      ValueError: no rule claims the path; a new parameter needs a rule.
    """
    for pattern, axes in _COMPILED:
        if pattern.fullmatch(path):
            return axes
    raise ValueError(
        f"no rule of uniadapter_jax.parallel.sharding.RULES claims the parameter {path!r}"
    )


@dataclasses.dataclass(frozen=True)
class Weights:
    """The sharding of a run's frozen weights on its mesh, at rest and where they are used.

    sharded: whether `fsdp` shards them, beside the batch; `tensor` always does.
    """

    mesh: Mesh
    sharded: bool

    @classmethod
    def of(cls, options: Mapping[str, Any], mesh: Mesh, model_config: Any) -> Weights:
        """The sharding that `config.mesh` describes.

        Raises:
          UserError: the heads of a tower do not divide over `tensor`.
        """
        parts = mesh.shape["tensor"]
        for tower in ("vision", "text"):
            heads = getattr(model_config, tower).heads
            if heads % parts:
                raise UserError(
                    f"config.mesh.tensor={parts} does not divide the {heads} heads of the "
                    f"backbone's {tower} tower"
                )
        return cls(mesh, options["weights"] == "sharded")

    @property
    def _at_rest(self) -> frozenset[str]:
        """The axes of the mesh that shard weights at rest."""
        axes = ("fsdp", "tensor") if self.sharded else ("tensor",)
        return frozenset(axis for axis in axes if self.mesh.shape[axis] > 1)

    @property
    def gathers(self) -> bool:
        """Whether weights have to be gathered before use."""
        return "fsdp" in self._at_rest

    def shardings(self, tree: PyTree) -> PyTree:
        """The shardings of a tree of frozen parameters, arrays or shapes."""
        return jax.tree.map_with_path(
            lambda path, x: self._sharding(_dotted(path), x.shape, self._at_rest), tree
        )

    def put(self, tree: PyTree) -> PyTree:
        """Puts frozen host arrays, equal on all processes, on the mesh: a shard on each device."""

        def place(x: Any, sharding: NamedSharding) -> jax.Array:
            host = np.asarray(jax.device_get(x))
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(place, tree, self.shardings(tree))

    def __call__(self, tree: PyTree) -> PyTree:
        """Gathers the parameters of one layer, or of modules outside stacks, for their use."""
        return jax.tree.map_with_path(self._gathered, tree)

    def use(self, model: nnx.Module) -> None:
        """Makes the stacks of a model gather their layers' weights one layer at a time."""
        if not self._at_rest:
            return
        for _, module in nnx.iter_modules(model, graph=True):
            if isinstance(module, Stack):
                module.weights = self

    def outside_stacks(self, frozen: PyTree) -> PyTree:
        """Gathers the frozen parameters outside stacks; those of stacks stay sharded."""
        if not self._at_rest:
            return frozen

        def gather(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            return x if "blocks" in _dotted(path).split(".") else self._gathered(path, x)

        return jax.tree.map_with_path(gather, frozen)

    def _gathered(self, path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = _dotted(path)
        if not self._at_rest.intersection(axes_of(name)):
            return x
        used = self._sharding(name, x.shape, self._at_rest - {"fsdp"})
        return jax.lax.with_sharding_constraint(x, used)

    def _sharding(self, name: str, shape: tuple[int, ...], over: frozenset[str]) -> NamedSharding:
        axes = axes_of(name)
        last = shape[len(shape) - len(axes) :]
        cut = [
            axis if axis in over and size % self.mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, last, strict=True)
        ]
        if not any(cut):
            return NamedSharding(self.mesh, P())
        return NamedSharding(self.mesh, P(*[None] * (len(shape) - len(cut)), *cut))


def _dotted(path: tuple[Any, ...]) -> str:
    """The dotted path in a nested dict or a state (whose paths end in the variable's attribute)."""
    return ".".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
