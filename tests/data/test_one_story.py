"""The same media and captions through each layout of a data set give the same records."""

import json
import pickle

import media
import pytest
from test_clip_sets import SENTENCES, activitynet, clip_vip, didemo, vatex, write_json, write_lists

from uniadapter_jax.prepare import prepare

CAPTIONS = {clip: texts for clips in SENTENCES.values() for clip, texts in clips.items()}


def msvd(root, layout):
    write_lists(root)
    if layout == "json":
        write_json(root / "captions_msvd.json", CAPTIONS)
    else:
        words = {clip: [text.split(" ") for text in texts] for clip, texts in CAPTIONS.items()}
        (root / "raw-captions.pkl").write_bytes(pickle.dumps(words, protocol=2))


def vatex_layout(root, layout):
    write_lists(root)
    if layout == "official":
        vatex(root)
    else:
        write_json(root / "ref_captions.json", CAPTIONS)


def didemo_layout(root, layout):
    if layout == "CLIP-ViP":
        clip_vip(root)
    else:
        didemo(root, lists=layout == "lists")


def activitynet_layout(root, layout):
    if layout == "official":
        activitynet(root)
    else:
        clip_vip(root, ("anet_train.jsonl", "ignored_other.jsonl", "anet_val1.jsonl"), "v_")


LAYOUTS = {
    "didemo": (didemo_layout, ("lists", "no lists", "CLIP-ViP")),
    "activitynet": (activitynet_layout, ("official", "CLIP-ViP")),
    "msvd": (msvd, ("json", "words")),
    "vatex": (vatex_layout, ("official", "ref_captions")),
}


def content(directory):
    """Everything of the records but which layout was read, and where the media lay."""
    stored = {
        path.name: path.read_bytes()
        for path in sorted(directory.iterdir())
        if path.name.startswith(("records-", "index-", "features"))
    }
    prepared = json.loads((directory / "prepare.json").read_text())
    return stored, prepared["coverage"], prepared["settings"]


@pytest.mark.parametrize(
    "name",
    [n if n == "vatex" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS],
)
def test_every_layout_tells_one_story(tmp_path, name):
    write, layouts = LAYOUTS[name]
    stories = []
    for layout in layouts:
        root = tmp_path / layout
        for number, clip in enumerate(CAPTIONS):
            place = "videos" if layout == layouts[0] else "deep/er"
            prefix = "v_" if name == "activitynet" else ""
            media.write_video(root / place / f"{prefix}{clip}.mp4", start=number)
        write(root, layout)
        out = tmp_path / f"records of {layout}"
        prepare(media.settings(source=name), str(root), str(out))
        stories.append(content(out))
    assert stories[0][0] and all(story == stories[0] for story in stories)
