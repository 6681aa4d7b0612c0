"""LSMDC: clips of films, a sentence each.

    LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, and LSMDC16_challenge_1000_publictect.csv,
    the 1,000 clips of the retrieval test (its spelling is theirs): tables of tabs without header,
    clip id, four times, sentence

An id that comes twice, as some of the training list do, is one clip with several captions. Media:
`<film>/<clip id>.avi`, anywhere below the input, or files as video_path.json says (DGL).
"""

from __future__ import annotations

import os

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.data.sources import clip_lists
from uniadapter_jax.data.sources.files import VIDEO_EXTENSIONS, Tree
from uniadapter_jax.data.sources.item import Item, Source

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
PUBLISHED = {"train": 101_079, "val": 7408, "test": 1000}  # lines
COLUMNS = 6


def read(root: str) -> Source:
    """The training and validation lists, and the 1,000 clips of the retrieval test."""
    tree = Tree(root)
    paths = {split: path for split, name in FILES.items() if (path := tree.find(name))}
    if "train" not in paths or "test" not in paths:
        raise UserError(
            f"--input={root} holds no LSMDC annotations; expected {', '.join(FILES.values())}"
        )
    stems = tree.by_stem(VIDEO_EXTENSIONS)
    listed = {c: name for c, name in clip_lists.listed_stems(tree).items() if c not in stems}
    items: list[Item] = []
    counts = []
    for split, path in paths.items():
        captions, lines = _captions(tree, path)
        named = (
            Item(clip, listed.get(clip, clip), split, tuple(texts))
            for clip, texts in captions.items()
        )
        items += tree.place_clips(named)
        count = clip_lists.counted(os.path.basename(path), lines, PUBLISHED[split])
        counts.append(count.replace(" clips", " lines"))
    return Source(f"LSMDC; {'; '.join(counts)}", tree.root, tuple(items))


def _captions(tree: Tree, path: str) -> tuple[dict[str, list[str]], int]:
    """({clip: sentences}, lines) of a table, in its order."""
    where = os.path.join(tree.root, path)
    captions: dict[str, list[str]] = {}
    lines = tree.read_names(path)
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) != COLUMNS:
            raise FileError(where, f"record {number}: {len(fields)} columns, not {COLUMNS}")
        captions.setdefault(fields[0].strip(), []).append(fields[-1].strip())
    return captions, len(lines)
