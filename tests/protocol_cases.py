"""Random similarities of texts and clips without ties, by number; see golden/make_protocols.py."""

from __future__ import annotations

import numpy as np

CASES, MOST_CLIPS, MOST_CAPTIONS = 1000, 40, 81


def case(number):
    """(similarity "n m", the clip of each text): a signal for the right clip, and noise."""
    rng = np.random.default_rng(number)
    clips = int(rng.integers(2, MOST_CLIPS + 1))
    most = int(rng.integers(1, MOST_CAPTIONS + 1))
    item = np.repeat(np.arange(clips), rng.integers(1, most + 1, clips))
    similarity = rng.permutation(len(item) * clips).reshape(len(item), clips).astype(np.float32)
    similarity[np.arange(len(item)), item] += rng.uniform(0, similarity.size) // 1 + 0.5
    return similarity, item
