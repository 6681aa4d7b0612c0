"""Slices by name: the devices of a TPU slice that is not there, or fake ones of this machine."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.planning.chips import CHIPS, Chip

# libtpu looks for a TPU and, on a machine without, reports at length that there is none.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so several plans may be made at once
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for.

    Attributes:
      name: such as `v5e:16x16` or `cpu:8`.
      devices: described, not present (TPU), or fake (CPU); each is a chip.
      chip: its published numbers; None for a CPU.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None

    @property
    def chips(self) -> int:
        """How many there are."""
        return len(self.devices)

    @property
    def platform(self) -> str:
        """What the devices compute with: cpu or tpu."""
        return "cpu" if self.chip is None else "tpu"

    @property
    def family(self) -> str:
        """The kind of chip: what stands before the colon."""
        return self.name.partition(":")[0]


def open_slice(name: str) -> Slice:
    """The slice of that name.

    Raises:
      UserError: there is none of that name, or libtpu is missing.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and no accelerator is taken
    family, _, size = name.partition(":")
    if family == "cpu" and size.isdigit() and int(size) > 0:
        return Slice(name, _fake_devices(int(size)), None)
    if family not in CHIPS or size not in CHIPS[family].slices:
        raise UserError(f"--topology={name} does not exist; there are {_known()}, and cpu:N")
    return Slice(name, _described(name), CHIPS[family])


def device_counts(plan: Slice) -> dict[str, int]:
    """{name: devices} of all slices of the same family, smallest first; for a CPU those below."""
    if plan.chip is None:
        return {f"cpu:{n}": n for n in range(1, len(plan.devices) + 1)}
    return {
        f"{plan.family}:{size}": math.prod(int(side) for side in size.split("x"))
        for size in plan.chip.slices
    }


def _known() -> str:
    return "; ".join(
        ", ".join(f"{family}:{size}" for size in chip.slices) for family, chip in CHIPS.items()
    )


def _fake_devices(count: int) -> Sequence[Any]:
    # Read when JAX first looks for devices; the last of several counts holds.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
    devices = jax.devices("cpu")
    os.environ["XLA_FLAGS"] = flags
    if len(devices) < count:
        raise UserError(
            f"--topology=cpu:{count}: this process began with {len(devices)} devices already"
        )
    return devices[:count]


def _described(name: str) -> Sequence[Any]:
    try:
        import libtpu  # noqa: F401 (JAX's own message does not say what to install)
    except ImportError as error:
        raise UserError(
            f"--topology={name} needs the TPU compiler: pip install 'uniadapter_jax[tpu]' "
            "(no TPU is needed); --topology=cpu:8 goes without"
        ) from error
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {}
    if name.startswith("v4:"):  # the two cores of a chip as one device, as JAX has them on a v4
        options["chip_config_name"] = "megacore"
    if name.endswith(":1x1"):  # hosts of four chips are assumed, which this has not
        options["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(name, "tpu", **options).devices
