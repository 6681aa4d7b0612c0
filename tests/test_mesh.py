"""Which rows of a global batch a process supplies, wherever its devices lie along the mesh."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils
from shares import DATA, FSDP, TENSOR, assert_each_row_once

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import mesh as meshes

# Processes along v5e:4x4, as `jax.make_mesh` orders its devices.
V5E_4X4 = (0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0)


@dataclasses.dataclass(frozen=True)
class Fake:
    """What a mesh asks of a device."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "fake"


def fake_mesh(processes, sizes=DATA):
    return meshes.make_mesh(sizes, [Fake(i, process) for i, process in enumerate(processes)])


ORDERS = [(0, 1, 0, 1), (0, 0, 1, 1), (1, 0, 0, 1), (0, 1, 1, 0, 3, 3, 2, 2), V5E_4X4]


@pytest.mark.parametrize("sizes", [DATA, FSDP, TENSOR, {"data": 1, "fsdp": 1, "tensor": -1}])
@pytest.mark.parametrize("processes", ORDERS)
def test_each_row_is_supplied_once_for_every_replica(processes, sizes):
    mesh = fake_mesh(processes, sizes)
    for rows in (1, 3):
        assert_each_row_once(mesh, rows * meshes.batch_shards(mesh))


def test_rows_by_hand():
    mesh = fake_mesh((0, 1, 0, 1))
    assert meshes.rows_of_process(mesh, 8, 0).tolist() == [0, 1, 4, 5]
    assert meshes.rows_of_process(mesh, 8, 1).tolist() == [2, 3, 6, 7]
    mesh = fake_mesh((0, 1, 0, 1, 2, 2, 3, 3), TENSOR)  # one part of 0 and 1, and again
    rows = [meshes.rows_of_process(mesh, 4, process).tolist() for process in range(4)]
    assert rows == [[0, 1], [0, 1], [2], [3]]
    with pytest.raises(ValueError, match="read-only"):
        meshes.rows_of_process(mesh, 4, 0)[0] = 1


@pytest.mark.parametrize(("size", "process", "message"), [(6, 0, "6 rows"), (8, 2, "process 2")])
def test_rows_that_cannot_be_are_refused_by_name(size, process, message):
    with pytest.raises(UserError, match=f"config.mesh: .*{message}.*data=4, fsdp=1, tensor=1"):
        meshes.rows_of_process(fake_mesh((0, 1, 0, 1)), size, process)


def test_processes_of_unequal_size_are_refused_by_name():
    with pytest.raises(UserError, match=r"config.mesh: .*process 1 has 2 and process 0 has 1"):
        fake_mesh((1, 0, 1))


@pytest.mark.parametrize("sizes", [DATA, FSDP, TENSOR])
def test_a_batch_lands_where_its_rows_belong(sizes):
    mesh = meshes.make_mesh(sizes, np.random.default_rng(0).permutation(jax.devices()).tolist())
    batch = {"a": np.arange(48).reshape(16, 3), "b": np.arange(16) % 2 == 0}
    placed = meshes.put_batch(batch, mesh, 16)
    for name, rows in batch.items():
        np.testing.assert_array_equal(placed[name], rows)
        assert placed[name].sharding == meshes.batch_sharding(mesh)
        everywhere = meshes.put_everywhere(rows, mesh, 16)
        np.testing.assert_array_equal(meshes.fetch(everywhere), rows)
    with pytest.raises(ValueError, match="'a' has 16 rows; of a global batch of 32"):
        meshes.put_batch(batch, mesh, 32)


def test_a_part_is_not_fetched_as_the_whole():
    mesh = meshes.make_mesh(DATA)
    with pytest.raises(ValueError, match=r"shape \(8,\) is cut over devices"):
        meshes.fetch(meshes.put_batch({"a": np.arange(8)}, mesh, 8))


@pytest.mark.parametrize("error", [NotImplementedError("no links"), AssertionError(), ValueError])
def test_devices_that_jax_cannot_lay_out_are_refused_by_name(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(jax, "make_mesh", fail)
    monkeypatch.setattr(mesh_utils, "create_device_mesh", fail)
    with pytest.raises(UserError, match=r"config.mesh: data=-1, .*cannot be laid over 8 x cpu: \w"):
        meshes.make_mesh(DATA)


def test_links_are_split_where_jax_does_not_by_itself(monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError  # what JAX says of a slice whose links it does not split

    monkeypatch.setattr(jax, "make_mesh", fail)
    assert dict(meshes.make_mesh(TENSOR).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
