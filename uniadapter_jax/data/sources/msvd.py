"""MSVD: short clips of YouTube with about 41 sentences each.

    lists      train_list.txt, val_list.txt, test_list.txt: an id `<id>_<start>_<end>` a line
    captions   raw-captions.pkl, {id: [[word, ...], ...]} (CLIP4Clip), or captions_msvd.json,
               {id: [sentence, ...]} (X-Pool)

Every sentence is a sample of training, and a query of evaluation.
"""

from __future__ import annotations

import os

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import clip_lists
from uniadapter_jax.data.sources.files import Tree
from uniadapter_jax.data.sources.item import Item, Source

PUBLISHED = {"train": 1200, "val": 100, "test": 670}


def read(root: str) -> Source:
    """The splits of the three lists."""
    tree = Tree(root)
    annotations = tree.find("raw-captions.pkl", "captions_msvd.json")
    lists = {split: path for split in PUBLISHED if (path := tree.find(f"{split}_list.txt"))}
    if not annotations or "train" not in lists or "test" not in lists:
        raise UserError(
            f"--input={root} holds no MSVD annotations; expected raw-captions.pkl or "
            "captions_msvd.json with train_list.txt, val_list.txt and test_list.txt"
        )
    captions = clip_lists.read_sentence_lists(tree, annotations)
    items: list[Item] = []
    counts = []
    for split, path in lists.items():
        where = os.path.join(tree.root, path)
        ids = clip_lists.chosen(where, tree.read_names(path), captions, annotations)
        items += clip_lists.clips(tree, split, ids, captions)
        counts.append(clip_lists.counted(split, len(ids), PUBLISHED[split]))
    other = tree.find("captions_msvd.json")
    if other and other != annotations:
        unread = clip_lists.read_sentence_lists(tree, other)
        ids = [item.id for item in items]
        counts += clip_lists.disagreement(os.path.basename(other), captions, unread, ids)
    protocol = f"MSVD by lists, {os.path.basename(annotations)}; {'; '.join(counts)}"
    return Source(protocol, tree.root, tuple(items))
