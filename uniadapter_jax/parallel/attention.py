"""Which form of attention the devices of a mesh use, as `config.compute.attention` says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.backbones.attention import attend
from uniadapter_jax.backbones.fused_attention import CuDNN, Fused, Kernel
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator, normal
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.parallel.mesh import BATCH_AXES, HEADS_AXIS, one_device

_CUDNN_SINCE = 8  # compute capability, of NVIDIA's; others' is no number


def _cudnn(mesh: Mesh) -> Fused | None:
    capability = str(getattr(mesh.devices.flat[0], "compute_capability", "")).split(".")[0]
    return CuDNN() if capability.isdigit() and int(capability) >= _CUDNN_SINCE else None


# By JAX's name of the devices; others have the plain form alone.
_FUSED: Mapping[str, Callable[[Mesh], Fused | None]] = {
    "tpu": lambda mesh: Kernel(mesh, BATCH_AXES, HEADS_AXIS),
    "gpu": _cudnn,
    "cpu": lambda mesh: Kernel(mesh, BATCH_AXES, HEADS_AXIS, interpret=True),
}
_AUTO = ("tpu", "gpu")  # where it is the faster
# Five media of 50 rows, four heads of 64: the last of the kernels' blocks may be cut.
_TRIED = (5, 4, 50, 64)
_TOLERANCE = 0.05  # of the largest value; bfloat16 and a TPU's float32 products take .02


def fused_form(name: str, mesh: Mesh) -> Fused | None:
    """The form for `auto`, `xla` or `fused`; None is the plain one.

    The devices count, not those of this process: a program may be compiled for others.
    """
    platform = mesh.devices.flat[0].platform
    if name == "xla" or (name == "auto" and platform not in _AUTO):
        return None
    return _FUSED.get(platform, lambda mesh: None)(mesh)


def tried_form(name: str, mesh: Mesh) -> Fused | None:
    """As `fused_form`, after its values and gradients were compared with the plain form's.

    Kernels were written without the devices that they are for, so each process tries them on its
    first device, where it takes seconds of compilation.

    Raises:
      UserError: they differ, or the device refuses them; the message says how to do without.
    """
    form = fused_form(name, mesh)
    if form is not None:
        try:
            error = _error(fused_form(name, one_device()))
        except Exception as reason:  # compilers and drivers have errors of their own
            raise _refused(f"cannot run on this device: {reason}") from reason
        if not error <= _TOLERANCE:
            raise _refused(f"is wrong on this device, by {error:.2g} of the largest value")
    return form


def _refused(what: str) -> UserError:
    return UserError(
        f"the fused form of attention {what}; please report it; config.compute.attention=xla does "
        "without"
    )


def _error(form: Fused | None) -> float:
    """The largest error of a form's values and gradients, as a share of the largest of each."""
    rng = generator(0, "attention")
    given = tuple(normal(rng, 1.0, *_TRIED).astype(jnp.bfloat16) for _ in range(4))
    results = (jax.device_get(_results(fused, *given)) for fused in (form, None))
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), *results)
    return float(np.max(jax.tree.leaves(errors)))


@functools.partial(jax.jit, static_argnums=0)
def _results(form: Fused | None, q: Array, k: Array, v: Array, dz: Array) -> PyTree:
    """z, and the gradients of q, k and v, in float32."""
    z, pull = jax.vjp(lambda *of: attend(*of, fused=form), q, k, v)
    return jax.tree.map(lambda x: x.astype(jnp.float32), (z, pull(dz)))
