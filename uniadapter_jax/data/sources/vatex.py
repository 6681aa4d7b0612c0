"""VATEX: ten-second clips with ten English captions each.

    captions   vatex_training_v1.0.json and vatex_validation_v1.0.json (or any of their known
               names): [{"videoID", "enCap": [...]}]; or ref_captions.json, {id: [caption, ...]}
    lists      train_list.txt, val_list.txt, test_list.txt: the HGR split, 25,991 / 1,500 / 1,500
               test1k5_sec_list.txt: another half of the validation file, CLIP2Video's own

Both test lists circulate under one name in papers, and R@1 differs by about 4 between them. So each
is a source of its own, `vatex` and `vatex_clip2video`.
"""

from __future__ import annotations

import os

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import clip_lists
from uniadapter_jax.data.sources.files import Fields, Tree
from uniadapter_jax.data.sources.item import Item, Source

PUBLISHED = {"train": 25_991, "val": 1500, "test": 1500}
Captions = dict[str, list[str]]
HGR = {split: f"{split}_list.txt" for split in PUBLISHED}
# The validation list of HGR overlaps with the other test list, so there is none.
CLIP2VIDEO = {"train": "train_list.txt", "test": "test1k5_sec_list.txt"}
ANNOTATIONS = (
    *("vatex_training_v1.0.json", "vatex_validation_v1.0.json"),
    *("vatex_train.json", "vatex_val.json", "vatex_public_test_english_v1.1.json"),
)


def read(root: str) -> Source:
    """The HGR split."""
    return _read(root, "VATEX, HGR split", HGR)


def read_clip2video(root: str) -> Source:
    """The split with CLIP2Video's own half of the validation file as test."""
    return _read(root, "VATEX, CLIP2Video's test list", CLIP2VIDEO)


def _read(root: str, name: str, lists: dict[str, str]) -> Source:
    tree = Tree(root)
    paths = {split: path for split, file in lists.items() if (path := tree.find(file))}
    captions, annotations, unread = _captions(tree)
    if not captions or "train" not in paths or "test" not in paths:
        raise UserError(
            f"--input={root}: expected {' and '.join(lists.values())} of {name}, with "
            "ref_captions.json, or with vatex_training_v1.0.json and vatex_validation_v1.0.json"
        )
    items: list[Item] = []
    counts = []
    for split, path in paths.items():
        where = os.path.join(tree.root, path)
        ids = [clip_lists.stem(clip) for clip in tree.read_names(path)]
        ids = clip_lists.chosen(where, ids, captions, annotations)
        items += clip_lists.clips(tree, split, ids, captions)
        counts.append(clip_lists.counted(os.path.basename(path), len(ids), PUBLISHED[split]))
    for other, texts in unread.items():
        ids = [item.id for item in items]
        counts += clip_lists.disagreement(other, captions, texts, ids)
    return Source(f"{name}; {annotations}; {'; '.join(counts)}", tree.root, tuple(items))


def _captions(tree: Tree) -> tuple[Captions, str, dict[str, Captions]]:
    """(English captions by clip, names of the files, {name: captions} of files beside those)."""
    official, names = _official(tree)
    if not (path := tree.find("ref_captions.json")):
        return official, names, {}
    collected = clip_lists.read_sentence_lists(tree, path)
    return collected, os.path.basename(path), {names: official} if official else {}


def _official(tree: Tree) -> tuple[Captions, str]:
    """The captions of the official files, and their names."""
    captions: dict[str, list[str]] = {}
    names = [path for name in ANNOTATIONS if (path := tree.find(name))]
    for path in names:
        fields, content = Fields(os.path.join(tree.root, path)), tree.read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{fields.where}: expected a list of records")
        for i, record in enumerate(content):
            clip = fields.get(record, "videoID", str, i)
            texts = fields.get(record, "enCap", list, i)
            if not all(isinstance(text, str) for text in texts):
                raise UserError(f"{fields.where}: record {i}: 'enCap' should be a list of strings")
            captions.setdefault(clip, []).extend(texts)
    return captions, ", ".join(os.path.basename(path) for path in names)
