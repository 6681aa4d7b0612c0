"""Where weights lie on the mesh: one table from the path of a parameter to its partition.

    weights = Weights.of(config.mesh, mesh, model_config)
    frozen = weights.put(part.frozen)            at rest, as `RULES` say
    part = dataclasses.replace(part, weights=weights)     whole again where they are used

`tensor` cuts the towers as Megatron-LM does (Shoeybi et al., 2019, section 3): q, k, v and fc1 by
their outputs, so that a device has whole heads and a share of the hidden units, out and fc2 by
their inputs. `fsdp` cuts what lies there between two uses (ZeRO, Rajbhandari et al., 2020, stage
3): the weights of a layer are gathered inside the scan when their layer comes, once more for the
gradient, and never kept.

An axis that does not divide over its axis of the mesh is not cut. Trainables are replicated
whatever the rules say: an adapter is small, and `method=full` on top of a large mesh is not what
this package is for.
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

WEIGHTS = ("replicated", "sharded")  # what `config.mesh.weights` may be

_INPUT, _HIDDEN = r"((attn|cross)\.[qkv]|fc1)", r"((attn|cross)\.out|fc2)"
_PLACES = r"prompts|(after|beside)_\w+|cross_key|cross_value|before|delta"

# (the end of a parameter's path, the axes of the mesh that cut its last axes). What leads, such as
# the axis of layers, is never cut. Methods come first: a path through one of their places, or
# through `adapters`, is theirs, whatever its end.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (rf"(adapters|{_PLACES})\.[\w.]+", ()),
    (rf"{_INPUT}\.kernel", ("fsdp", "tensor")),
    (rf"{_INPUT}\.bias", ("tensor",)),
    (rf"{_HIDDEN}\.kernel", ("tensor", "fsdp")),
    (rf"{_HIDDEN}\.bias", ()),  # not worth a gather of their own
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
    """The axes of the mesh that cut the last axes of the parameter of this dotted path.

    Raises:
      ValueError: no rule claims it; a new parameter needs one.
    """
    for pattern, axes in _COMPILED:
        if pattern.fullmatch(path):
            return axes
    raise ValueError(
        f"no rule of uniadapter_jax.parallel.sharding.RULES claims the parameter {path!r}"
    )


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where a run's frozen weights lie on its mesh, and how they come to where they are used.

    sharded: whether `fsdp` cuts them, beside the batch; `tensor` always does.
    """

    mesh: Mesh
    sharded: bool

    @classmethod
    def of(cls, options: Mapping[str, Any], mesh: Mesh, model_config: Any) -> Weights:
        """As `config.mesh` says.

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
        """Axes of the mesh that cut anything."""
        axes = ("fsdp", "tensor") if self.sharded else ("tensor",)
        return frozenset(axis for axis in axes if self.mesh.shape[axis] > 1)

    @property
    def gathers(self) -> bool:
        """Whether weights are cut at rest that are whole in use."""
        return "fsdp" in self._at_rest

    def shardings(self, tree: PyTree) -> PyTree:
        """Of arrays, or shapes, of frozen parameters."""
        return jax.tree.map_with_path(
            lambda path, x: self._sharding(_dotted(path), x.shape, self._at_rest), tree
        )

    def put(self, tree: PyTree) -> PyTree:
        """Frozen host arrays, equal on all processes, on the mesh: to each device its part."""

        def place(x: Any, sharding: NamedSharding) -> jax.Array:
            host = np.asarray(jax.device_get(x))
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(place, tree, self.shardings(tree))

    def __call__(self, tree: PyTree) -> PyTree:
        """The parameters of one layer, or of no stack, as they are where they are used."""
        return jax.tree.map_with_path(self._whole, tree)

    def use(self, model: nnx.Module) -> None:
        """Lets the stacks of a model bring their layers' weights together one by one."""
        if not self._at_rest:
            return
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Stack):
                module.weights = self

    def outside_stacks(self, frozen: PyTree) -> PyTree:
        """Frozen parameters, those of no stack as they are where they are used."""
        if not self._at_rest:
            return frozen

        def whole(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            return x if "blocks" in _dotted(path).split(".") else self._whole(path, x)

        return jax.tree.map_with_path(whole, frozen)

    def _whole(self, path: tuple[Any, ...], x: jax.Array) -> jax.Array:
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
    """The path in a nested dict, or in a state, whose paths end in an attribute of the variable."""
    return ".".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
