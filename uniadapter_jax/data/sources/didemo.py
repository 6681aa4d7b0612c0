"""DiDeMo as paragraph retrieval: all descriptions of a video are one text.

    official   train_data.json, val_data.json, test_data.json: [{"video", "description", ...}], and
               CLIP4Clip's train_list.txt, val_list.txt, test_list.txt, which leave videos out
    CLIP-ViP   one .jsonl a split of {"clip_id", "text": [sentences]}

The annotated moments lie in the first 30 s, so the clip is the first 31 s of a video, as in
CLIP4Clip. `video` carries a suffix that the file may not have.
"""

from __future__ import annotations

import os

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import clip_lists
from uniadapter_jax.data.sources.files import Fields, Tree
from uniadapter_jax.data.sources.item import Item, Source

PUBLISHED = {"train": 8392, "val": 1065, "test": 1004}
END = 31.0  # seconds


def read(root: str) -> Source:
    """The splits with CLIP4Clip's lists, where they are there."""
    tree = Tree(root)
    paragraphs = {
        split: (path, _paragraphs(tree, path))
        for split in PUBLISHED
        if (path := tree.find(f"{split}_data.json"))
    } or clip_lists.paragraph_records(tree)
    if not {"train", "test"} <= paragraphs.keys():
        raise UserError(
            f"--input={root} holds no DiDeMo annotations; expected train_data.json, val_data.json "
            "and test_data.json (with train_list.txt, val_list.txt and test_list.txt), or lists "
            "train.jsonl and test.jsonl of one record a clip (CLIP-ViP)"
        )
    items: list[Item] = []
    counts = []
    for split, (path, texts) in paragraphs.items():
        ids, captions = list(texts), {clip: [text] for clip, text in texts.items()}
        if listed := tree.find(f"{split}_list.txt"):
            where = os.path.join(tree.root, listed)
            named = [clip_lists.stem(name) for name in tree.read_names(listed)]
            ids = clip_lists.chosen(where, named, captions, path)
            counts.append(f"{len(texts):,} videos annotated in {os.path.basename(path)}")
        items += clip_lists.clips(tree, split, ids, captions, end=END)
        counts += clip_lists.other_paragraphs(tree, split, path, texts)
        counts.append(clip_lists.counted(split, len(ids), PUBLISHED[split]))
    return Source(f"DiDeMo, paragraphs; {'; '.join(counts)}", tree.root, tuple(items))


def _paragraphs(tree: Tree, path: str) -> dict[str, str]:
    """{clip: paragraph} of the official annotations, in the order of the file."""
    fields, content = Fields(os.path.join(tree.root, path)), tree.read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{fields.where}: expected a list of records")
    sentences: dict[str, list[str]] = {}
    for i, record in enumerate(content):
        clip = clip_lists.stem(fields.get(record, "video", str, i))
        sentences.setdefault(clip, []).append(fields.get(record, "description", str, i))
    return {clip: clip_lists.paragraph(texts) for clip, texts in sentences.items()}
