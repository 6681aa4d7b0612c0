"""How long a step takes at best, from published rates: an estimate, not a measurement."""

from __future__ import annotations

import dataclasses

from uniadapter_jax.planning.compilation import Work
from uniadapter_jax.planning.topology import Slice


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each resource of a device would need alone, at its published rate.

    Attributes:
      compute: of the executed products, at the bfloat16 peak.
      hbm: of the traffic with HBM.
      ici: of what a device sends to others; latency is left out.
    """

    compute: float
    hbm: float
    ici: float

    @property
    def seconds(self) -> float:
        """If all three overlap perfectly: a lower bound."""
        return max(self.compute, self.hbm, self.ici)

    @property
    def bound(self) -> str:
        """The resource that decides: compute, hbm or ici."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def roofline(work: Work, plan: Slice) -> Roofline | None:
    """Of one program on one device of a slice; None for a CPU, which has no published rates."""
    if plan.chip is None:
        return None
    return Roofline(
        compute=work.flops / plan.chip.peak,
        hbm=work.hbm_bytes / plan.chip.hbm_bandwidth,
        ici=sum(c.sent for c in work.collectives.values()) / plan.chip.ici_bandwidth,
    )
