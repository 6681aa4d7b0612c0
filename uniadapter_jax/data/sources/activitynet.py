"""ActivityNet Captions as paragraph retrieval: all sentences about a video are one text.

    official   train.json and val_1.json: {"v_<id>": {"sentences": [...], "timestamps": ...}}; where
               train_list.txt and val_1_list.txt are there (DGL), they choose and order the ids
    CLIP-ViP   one .jsonl a split of {"clip_id", "text": [sentences]}

The test split is val_1, 4,917 videos. val_2 is a second annotation of videos of the same split: it
is another benchmark, which this does not read. A file is called with or without "v_", or as
video_path.json says, {id without "v_": path}.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import clip_lists
from uniadapter_jax.data.sources.files import VIDEO_EXTENSIONS, Fields, Tree
from uniadapter_jax.data.sources.item import Item, Source

PUBLISHED = {"train": 10_009, "test": 4917}
FILES = {"train": ("train.json", "train_list.txt"), "test": ("val_1.json", "val_1_list.txt")}


def read(root: str) -> Source:
    """Train, and val_1 as test."""
    tree = Tree(root)
    paragraphs = {
        split: (path, _paragraphs(tree, path))
        for split, (name, _) in FILES.items()
        if (path := tree.find(name))
    }
    if not paragraphs:
        of_lists = clip_lists.paragraph_records(tree)
        # CLIP-ViP's list of val_1 is a list of "val": the one that is tested.
        of_lists.setdefault("test", of_lists.pop("val", ("", {})))
        paragraphs = {split: value for split, value in of_lists.items() if value[1]}
    if not {"train", "test"} <= paragraphs.keys():
        raise UserError(
            f"--input={root} holds no ActivityNet annotations; expected train.json and val_1.json, "
            "or lists train.jsonl and val1.jsonl of one record a clip (CLIP-ViP)"
        )
    items: list[Item] = []
    counts = []
    for split in PUBLISHED:
        path, texts = paragraphs[split]
        ids, captions = list(texts), {clip: [text] for clip, text in texts.items()}
        if listed := tree.find(FILES[split][1]):
            where = os.path.join(tree.root, listed)
            named = [_named(name) for name in tree.read_names(listed)]
            ids = clip_lists.chosen(where, named, captions, path)
            counts.append(f"{len(texts):,} videos annotated in {os.path.basename(path)}")
        items += _clips(tree, split, ids, captions)
        counts += clip_lists.other_paragraphs(
            tree, "val" if split == "test" else split, path, texts
        )
        counts.append(clip_lists.counted(os.path.basename(path), len(ids), PUBLISHED[split]))
    return Source(f"ActivityNet, paragraphs; {'; '.join(counts)}", tree.root, tuple(items))


def _named(clip: str) -> str:
    """The id with its prefix, which lists leave out."""
    clip = clip_lists.stem(clip)
    return clip if clip.startswith("v_") else f"v_{clip}"


def _paragraphs(tree: Tree, path: str) -> dict[str, str]:
    """{clip: paragraph} of the official annotations, in the order of the file."""
    fields, content = Fields(os.path.join(tree.root, path)), tree.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{fields.where}: expected an object of videos")
    texts = {}
    for clip, record in content.items():
        sentences = fields.get(record, "sentences", list, clip)
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise UserError(f"{fields.where}: {clip}: 'sentences' should be a list of strings")
        texts[_named(clip)] = clip_lists.paragraph(sentences)
    return texts


def _clips(tree: Tree, split: str, ids: list[str], captions: Mapping[str, list[str]]) -> list[Item]:
    by_stem = tree.by_stem(VIDEO_EXTENSIONS)
    listed = clip_lists.listed_stems(tree)
    names = {}
    for clip in ids:
        bare = clip.removeprefix("v_")
        candidates = (clip, bare, listed.get(bare, clip))
        names[clip] = next((name for name in candidates if name in by_stem), clip)
    placed = tree.place_clips(Item(clip, names[clip], split, tuple(captions[clip])) for clip in ids)
    return list(placed)
