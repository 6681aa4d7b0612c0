"""MSR-VTT in the layouts in which it is distributed.

    CLIP4Clip   MSRVTT_data.json, MSRVTT_train.9k.csv or .7k.csv, MSRVTT_JSFUSION_test.csv (test
                caption = the column `sentence`: the 1k-A protocol)
    official    train_val_videodatainfo.json and test_videodatainfo.json, with their splits
    Frozen, CE  annotation/MSR_VTT.json and structured-symlinks/{train,val}_list_jsfusion.txt,
                jsfusion_val_caption_idx.pkl (which caption of a test clip is the 1k-A one)
    CLIP-ViP    a .jsonl for train and test of {"clip_id", "text": [captions]}; of a list of test1ka
                the first caption is the 1k-A one
    ClipBERT    {train,val,test}.jsonl of {"caption", "clip_name"}

Start and end times in the annotations are positions in the YouTube video that a clip was cut from;
the files in the set are the clips, so the times are not used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.data.sources.clip_lists import (
    chosen,
    clips,
    read_plain_pickle,
    sentence_records,
)
from uniadapter_jax.data.sources.files import Fields, Tree
from uniadapter_jax.data.sources.item import Item, Source, clean_text

OFFICIAL_SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}
CAPTION_FILES = {
    "train": ("train.jsonl", "msrvtt_train.jsonl", "train_9k.jsonl", "train_7k.jsonl"),
    "val": ("val.jsonl", "msrvtt_val.jsonl"),
    "test": ("test.jsonl", "msrvtt_test.jsonl"),
}

Captions = dict[str, list[str]]  # video id -> captions, both in the order of the file


def read(root: str) -> Source:
    """Reads the 1k-A protocol with 9k training clips if its lists exist; else another layout."""
    tree = Tree(root)
    if tree.find("MSRVTT_JSFUSION_test.csv"):
        name = tree.find("MSRVTT_train.9k.csv") or tree.find("MSRVTT_train.7k.csv")
        if name:
            return _clip4clip(tree, name)
    if tree.find("train_val_videodatainfo.json", "test_videodatainfo.json"):
        return _official(tree)
    if tree.find("MSR_VTT.json"):
        return _frozen(tree)
    records = sentence_records(tree)
    if {"train", "test"} <= records.keys():
        return _clip_vip(tree, records)
    if any(tree.find(*names) for names in CAPTION_FILES.values()):
        return _clipbert(tree)
    if tree.find("MSRVTT_data.json"):
        return _official(tree)
    raise UserError(
        f"--input={root} holds no MSR-VTT annotations; expected one of: MSRVTT_data.json with "
        "MSRVTT_train.9k.csv and MSRVTT_JSFUSION_test.csv (CLIP4Clip's package), "
        "train_val_videodatainfo.json with test_videodatainfo.json (official), "
        "annotation/MSR_VTT.json with structured-symlinks/ (Frozen), train.jsonl with test.jsonl"
    )


def read_7k(root: str) -> Source:
    """The 1k-A protocol with the 7,010 clips of the older training list."""
    tree = Tree(root)
    if name := tree.find("MSRVTT_train.7k.csv"):
        return _clip4clip(tree, name)
    raise UserError(f"--input={root} holds no MSRVTT_train.7k.csv")


def read_full(root: str) -> Source:
    """The official split: 6,513 / 497 / 2,990 clips with all their captions."""
    return _official(Tree(root))


def _sentences(records: Any, id_key: str, where: str, captions: Captions) -> Captions:
    fields = Fields(where)
    if not isinstance(records, list):
        raise UserError(f"{where}: the list of captions is a {type(records).__name__}")
    for i, record in enumerate(records):
        video = fields.get(record, id_key, str, i)
        captions.setdefault(video, []).append(fields.get(record, "caption", str, i))
    return captions


def _clip4clip(tree: Tree, train_list: str) -> Source:
    test_list = tree.find("MSRVTT_JSFUSION_test.csv")
    annotations = tree.find("MSRVTT_data.json")
    if not test_list or not annotations:
        lacking = "MSRVTT_data.json" if test_list else "MSRVTT_JSFUSION_test.csv"
        raise UserError(f"--input={tree.root} holds {train_list} but no {lacking}")
    where = os.path.join(tree.root, annotations)
    sentences = Fields(where).get(tree.read_json(annotations), "sentences", list)
    captions = _sentences(sentences, "video_id", where, {})
    listed = [video for (video,) in tree.read_columns(train_list, "video_id")]
    train = chosen(os.path.join(tree.root, train_list), listed, captions, annotations)
    test: Captions = {}
    for video, sentence in tree.read_columns(test_list, "video_id", "sentence"):
        if video in test:  # the protocol has one caption a clip
            raise FileError(os.path.join(tree.root, test_list), f"{video!r} is listed twice")
        test[video] = [sentence]
    items = clips(tree, "train", train, captions) + clips(tree, "test", test, test)
    protocol = f"1k-A: {os.path.basename(train_list)}, {os.path.basename(test_list)}"
    other = sum(_is_other(sentence, captions.get(video)) for video, (sentence,) in test.items())
    if other:
        protocol += f"; {other:,} of {len(test):,} test captions are none of {annotations}"
    return Source(protocol, tree.root, tuple(items))


def _is_other(sentence: str, known: list[str] | None) -> bool:
    """Whether a test caption is none of the clip's annotated ones, as of another version."""
    return clean_text(sentence) not in map(clean_text, known or ())


def _official(tree: Tree) -> Source:
    names = [
        path
        for name in ("train_val_videodatainfo.json", "test_videodatainfo.json")
        if (path := tree.find(name))
    ] or [path for path in [tree.find("MSRVTT_data.json")] if path]
    if not names:
        raise UserError(
            f"--input={tree.root} holds neither train_val_videodatainfo.json and "
            "test_videodatainfo.json nor MSRVTT_data.json"
        )
    items: list[Item] = []
    for name in names:
        where = os.path.join(tree.root, name)
        fields, content = Fields(where), tree.read_json(name)
        captions = _sentences(fields.get(content, "sentences", list), "video_id", where, {})
        ids: dict[str, list[str]] = {}
        for i, video in enumerate(fields.get(content, "videos", list)):
            split = fields.get(video, "split", str, i)
            if split not in OFFICIAL_SPLITS:
                raise UserError(f"{where}: record {i}: unknown split {split!r}")
            ids.setdefault(OFFICIAL_SPLITS[split], []).append(fields.get(video, "video_id", str, i))
        for split, members in ids.items():
            items += clips(tree, split, members, captions)
    protocol = "official split: " + ", ".join(os.path.basename(name) for name in names)
    return Source(protocol, tree.root, tuple(items))


def _frozen(tree: Tree) -> Source:
    annotations = tree.find("MSR_VTT.json")
    train_list = tree.find("train_list_jsfusion.txt")
    test_list = tree.find("val_list_jsfusion.txt")
    indices = tree.find("jsfusion_val_caption_idx.pkl")
    if not (annotations and train_list and test_list and indices):
        raise UserError(
            f"--input={tree.root} holds MSR_VTT.json but not all of train_list_jsfusion.txt, "
            "val_list_jsfusion.txt, jsfusion_val_caption_idx.pkl (structured-symlinks/)"
        )
    where = os.path.join(tree.root, annotations)
    records = Fields(where).get(tree.read_json(annotations), "annotations", list)
    captions = _sentences(records, "image_id", where, {})
    which = read_caption_indices(os.path.join(tree.root, indices))
    where = os.path.join(tree.root, train_list)
    train = chosen(where, tree.read_names(train_list), captions, annotations)
    where = os.path.join(tree.root, test_list)
    test: Captions = {}
    for video in chosen(where, tree.read_names(test_list), captions, annotations):
        index, known = which.get(video), captions.get(video, [])
        if index is None or not 0 <= index < len(known):
            raise UserError(
                f"{os.path.join(tree.root, indices)}: caption {index} of {video} chosen, "
                f"which has {len(known)} captions in {annotations}"
            )
        test[video] = [known[index]]
    items = clips(tree, "train", train, captions) + clips(tree, "test", test, test)
    protocol = f"1k-A: {os.path.basename(train_list)}, {os.path.basename(test_list)}"
    return Source(protocol, tree.root, tuple(items))


def read_caption_indices(path: str) -> dict[str, int]:
    """{video id: caption index} from a pickle that may hold nothing but a dict of str and int."""
    content = read_plain_pickle(path)
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and type(v) is int for k, v in content.items()
    ):
        raise UserError(f"{path}: expected a dict of video id to caption index")
    return content


def _clip_vip(tree: Tree, records: Mapping[str, tuple[str, Captions]]) -> Source:
    items: list[Item] = []
    for split, (path, captions) in records.items():
        if "test1ka" in os.path.basename(path).lower():
            captions = {video: texts[:1] for video, texts in captions.items()}
        items += clips(tree, split, captions, captions)
    used = ", ".join(os.path.basename(path) for path, _ in records.values())
    return Source(f"lists of {used}", tree.root, tuple(items))


def _clipbert(tree: Tree) -> Source:
    from uniadapter_jax.data.sources.manifest import json_lines

    items: list[Item] = []
    used = []
    for split, names in CAPTION_FILES.items():
        if not (path := tree.find(*names)):
            continue
        used.append(os.path.basename(path))
        captions: Captions = {}
        full = os.path.join(tree.root, path)
        for number, record in json_lines(full):
            fields = Fields(f"{full}, line {number}")
            video = fields.get(record, "clip_name", str)
            captions.setdefault(video, []).append(fields.get(record, "caption", str))
        items += clips(tree, split, captions, captions)
    return Source("lists of " + ", ".join(used), tree.root, tuple(items))
