"""Rows of a global batch as the hosts of a pod supply them, and what must hold of them."""

from __future__ import annotations

import numpy as np

from uniadapter_jax.parallel import mesh as meshes

DATA, FSDP, TENSOR = (
    {"data": -1, "fsdp": 1, "tensor": 1},
    {"data": -1, "fsdp": 4, "tensor": 1},
    {"data": -1, "fsdp": 1, "tensor": 2},
)


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


def assert_each_row_once(mesh, size):
    """Per replica; and a process supplies what its devices hold, nothing else."""
    parts = meshes.batch_shards(mesh)
    part = size // parts
    of_part = mesh.devices.reshape(parts, -1)  # devices that hold it, by replica
    supplied = {
        process: meshes.rows_of_process(mesh, size, process).tolist()
        for process in {device.process_index for device in mesh.devices.flat}
    }
    held = {process: [] for process in supplied}
    for replica in of_part.T:
        rows = []
        for i, device in enumerate(replica):
            its = range(i * part, (i + 1) * part)
            assert set(its) <= set(supplied[device.process_index])
            held[device.process_index] += its
            rows += its
        assert rows == list(range(size))
    assert supplied == {process: sorted(set(rows)) for process, rows in held.items()}
