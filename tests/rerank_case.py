"""A small case of re-ranking; run as a program, one of several processes that share it.

python tests/rerank_case.py COORDINATOR PROCESSES INDEX OUT.npz
"""

import sys
from types import SimpleNamespace

import numpy as np

TEXTS, ITEMS = 11, 10
OPTIONS = {"rerank_k": 3, "rerank_rows": 4, "rerank_beta": 0.5, "frame_weights": False}


def options(**changes):
    return SimpleNamespace(**{**OPTIONS, **changes})


def arrays(frames=1, seed=0):
    """(ids, mask, features, similarity, clips "m f H W 3", frame mask); lengths are ragged."""
    rng = np.random.default_rng(seed)
    mask = np.arange(12) < rng.choice([5, 9, 12], (TEXTS, 1), p=[0.6, 0.2, 0.2])
    ids = np.where(mask, rng.integers(6, 58, mask.shape), 0).astype(np.int32)
    features = rng.standard_normal((TEXTS, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    similarity = rng.uniform(-1, 1, (TEXTS, ITEMS)).astype(np.float32)
    clips = rng.integers(0, 256, (ITEMS, frames, 32, 32, 3), np.uint8)
    present = np.arange(frames) < rng.choice([1, frames], (ITEMS, 1))
    return ids, mask, features, similarity, clips, present


def clip_source(clips, present, batch, *, own=None, seen=None):
    """What `data.pipeline.clip_batches` gives; `own` are the rows of a batch that
    a process supplies, `seen` collects the first item of each batch."""
    own = np.arange(batch) if own is None else own

    def source(items):
        for start in range(0, len(items), batch):
            rows = start + own
            chosen = [items[i] for i in rows if i < len(items)]
            if seen is not None:
                seen.append(items[start])
            frames = np.zeros((len(rows), *clips.shape[1:]), np.uint8)
            mask = np.zeros((len(rows), clips.shape[1]), bool)
            mask[:, 0] = True
            frames[: len(chosen)], mask[: len(chosen)] = clips[chosen], present[chosen]
            yield {"frames": frames, "frame_mask": mask}

    return source


def model(**kwargs):
    """A tiny BLIP with UniAdapter and noise."""
    from test_uniadapter_blip import MATCHING, adapted

    return adapted(parts=(MATCHING,), noise=0.3, **kwargs)


def main():
    import jax

    coordinator, count, index, out = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, int(count), int(index), initialization_timeout=60)

    from uniadapter_jax.adapters.partition import partition
    from uniadapter_jax.adapters.registry import AdapterParam
    from uniadapter_jax.parallel import mesh as meshes
    from uniadapter_jax.tasks.matching.pair_scores import Texts
    from uniadapter_jax.tasks.matching.reranking import Reranker

    ids, mask, features, similarity, clips, present = arrays(frames=3)
    devices = [jax.devices()[i] for i in (2, 0, 3, 1)]  # of the second and the first in turn
    jax.devices = lambda: devices
    mesh = meshes.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    assert meshes.rows_of_process(mesh, 4).tolist() == [1 - int(index), 3 - int(index)]
    assert meshes.of_processes(np.array(int(index))).tolist() == [0, 1]
    part = partition(model(), AdapterParam)
    part.trainable = meshes.put_replicated(part.trainable, mesh)
    part.frozen = meshes.put_replicated(part.frozen, mesh)
    if int(index):  # another machine may round otherwise; the first process decides
        similarity = similarity + np.float32(1e-6)
        similarity[0, :2] = similarity[0, 1::-1]
    found = Reranker(part, mesh, options(frame_weights=True)).rerank(
        part.trainable,
        Texts(ids, mask, features),
        clip_source(clips, present, 4, own=meshes.rows_of_process(mesh, 4)),
        similarity,
        batch=4,
    )
    np.savez(out, t2v=found[0], v2t=found[1])


if __name__ == "__main__":
    main()
