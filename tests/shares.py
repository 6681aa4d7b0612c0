"""Rows of a global batch as the hosts of a pod supply them, and batches put together again."""

from __future__ import annotations

import numpy as np


def interleaved(batch, hosts):
    """Rows of a global batch by host: with gaps, since hosts interleave along the batch."""
    return [np.arange(host, batch, hosts) for host in range(hosts)]


def joined(parts, shares):
    """Global batches of every step from the hosts' rows of them."""
    order = np.argsort(np.concatenate(shares))
    return [
        {key: np.concatenate([part[key] for part in step])[order] for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
