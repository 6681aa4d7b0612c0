"""Which form of attention the devices of a mesh use, as `config.compute.attention` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from uniadapter_jax.backbones.fused_attention import CuDNN, Fused, Kernel
from uniadapter_jax.parallel.mesh import BATCH_AXES, HEADS_AXIS

_CUDNN_SINCE = 8.0  # compute capability


def _cudnn(mesh: Mesh) -> Fused | None:
    device = mesh.devices.flat[0]
    return CuDNN() if float(getattr(device, "compute_capability", 0)) >= _CUDNN_SINCE else None


# By JAX's name of the devices; others have the plain form alone.
_FUSED: Mapping[str, Callable[[Mesh], Fused | None]] = {
    "tpu": lambda mesh: Kernel(mesh, BATCH_AXES, HEADS_AXIS),
    "gpu": _cudnn,
    "cpu": lambda mesh: Kernel(mesh, BATCH_AXES, HEADS_AXIS, interpret=True),
}
_AUTO = ("tpu", "gpu")  # where it is the faster


def fused_form(name: str, mesh: Mesh) -> Fused | None:
    """The form for `auto`, `xla` or `fused`; None is the plain one.

    The devices count, not those of this process: a program may be compiled for others.
    """
    platform = mesh.devices.flat[0].platform
    if name == "xla" or (name == "auto" and platform not in _AUTO):
        return None
    return _FUSED.get(platform, lambda mesh: None)(mesh)
