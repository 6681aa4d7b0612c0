"""Karpathy's splits of Flickr8K, Flickr30K and COCO: a picture is a clip of one frame.

    Karpathy   dataset_flickr30k.json or dataset_coco.json: {"images": [{"filename", "filepath",
               "split", "sentences": [{"raw"}]}]}; `restval` counts as train
    BLIP       coco_karpathy_{train,val,test}.json or flickr30k_{train,val,test}.json:
               [{"image": path, "caption": one string or a list}]

Pictures are found by folder and name anywhere below the input directory; `Tree.locate` says how
their folder may differ from the one in the annotations.
"""

from __future__ import annotations

import os

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.files import Fields, Tree
from uniadapter_jax.data.sources.item import Item, Source

KARPATHY_FILES = ("dataset_flickr30k.json", "dataset_coco.json", "dataset_flickr8k.json")
BLIP_SETS = ("coco_karpathy", "flickr30k")
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read(root: str) -> Source:
    tree = Tree(root)
    files = [path for name in KARPATHY_FILES if (path := tree.find(name))]
    if len(files) > 1:
        raise UserError(f"--input={root} holds {' and '.join(files)}; point it at one of the sets")
    if files:
        return _karpathy(tree, files[0])
    for name in BLIP_SETS:
        splits = {split: tree.find(f"{name}_{split}.json") for split in ("train", "val", "test")}
        if any(splits.values()):
            return _blip(tree, {split: path for split, path in splits.items() if path})
    raise UserError(
        f"--input={root} holds none of {', '.join(KARPATHY_FILES)}, coco_karpathy_train.json, "
        "flickr30k_train.json"
    )


def _karpathy(tree: Tree, annotations: str) -> Source:
    where = os.path.join(tree.root, annotations)
    fields = Fields(where)
    items = []
    for i, image in enumerate(fields.get(tree.read_json(annotations), "images", list)):
        name = fields.get(image, "filename", str, i)
        split = fields.get(image, "split", str, i)
        if split not in SPLITS:
            raise UserError(f"{where}: record {i}: unknown split {split!r}")
        folder = fields.get(image, "filepath", str, i) if "filepath" in image else ""
        sentences = fields.get(image, "sentences", list, i)
        items.append(
            Item(
                id=os.path.splitext(name)[0],
                path=os.path.join(folder, name),
                split=SPLITS[split],
                captions=tuple(fields.get(sentence, "raw", str, i) for sentence in sentences),
            )
        )
    protocol = f"Karpathy split: {os.path.basename(annotations)}"
    return Source(protocol, tree.root, tree.place_pictures(items))


def _blip(tree: Tree, files: dict[str, str]) -> Source:
    items = []
    for split, path in files.items():
        where = os.path.join(tree.root, path)
        fields, content = Fields(where), tree.read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{where}: expected a list of records")
        captions: dict[str, list[str]] = {}
        for i, record in enumerate(content):
            image = fields.get(record, "image", str, i)
            texts = record.get("caption")
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                raise UserError(f"{where}: record {i}: 'caption' should be a string or a list")
            captions.setdefault(image, []).extend(texts)
        for image, texts in captions.items():
            items.append(
                Item(
                    id=os.path.splitext(os.path.basename(image))[0],
                    path=image,
                    split=split,
                    captions=tuple(texts),
                )
            )
    protocol = "Karpathy split: " + ", ".join(os.path.basename(path) for path in files.values())
    return Source(protocol, tree.root, tree.place_pictures(items))
