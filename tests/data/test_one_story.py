"""The same media and captions through each layout of a data set give the same records."""

import json
import pickle
import shutil

import media
import pytest
import small_run
import test_clip_sets as sets
from test_clip_sets import activitynet, clip_vip, didemo, vatex, write_json, write_lists

from uniadapter_jax.data.preparation import toy
from uniadapter_jax.prepare import prepare


def captions(splits=("train", "val", "test")):
    return {clip: texts for split in splits for clip, texts in sets.SENTENCES[split].items()}


def msvd(root, layout):
    write_lists(root)
    if layout == "json":
        write_json(root / "captions_msvd.json", captions())
    else:
        words = {clip: [text.split(" ") for text in texts] for clip, texts in captions().items()}
        (root / "raw-captions.pkl").write_bytes(pickle.dumps(words, protocol=2))


def vatex_layout(root, layout):
    write_lists(root)
    if layout == "official":
        vatex(root)
    else:
        write_json(root / "ref_captions.json", captions())


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


def lsmdc(root, layout):
    names = ("annos_training", "annos_val", "challenge_1000_publictect")
    for name, clips in zip(names, sets.SENTENCES.values(), strict=True):
        rows = [(clip, *"0123", text) for clip, texts in clips.items() for text in texts if text]
        table = "".join("\t".join(row) + "\n" for row in rows)
        (root / f"LSMDC16_{name}.csv").write_text(table)
    if layout == "DGL":  # files of other names
        names = {clip: f"odd name of {clip}.mp4" for clip in captions()}
        for clip, name in names.items():
            (found,) = root.rglob(f"{clip}.mp4")
            found.rename(found.with_name(name))
        write_json(root / "video_path.json", {clip: f"deep/er/{n}" for clip, n in names.items()})


def msrvtt(root, layout):
    """The 1k-A protocol: a caption of each test clip, and no validation."""
    train, test = sets.SENTENCES["train"], sets.SENTENCES["test"]
    pairs = [(clip, text) for clip, texts in (train | test).items() for text in texts]
    used = [(clip, text) for clip, text in pairs if clip in train or text == test[clip][0]]
    sentences = [{"video_id": clip, "caption": text} for clip, text in pairs]
    if layout == "CLIP4Clip":
        write_json(root / "MSRVTT_data.json", {"videos": [], "sentences": sentences})
        media.write_csv(root / "MSRVTT_train.9k.csv", ["video_id"], [[clip] for clip in train])
        chosen = [["", "", clip, texts[0]] for clip, texts in test.items()]
        header = ["key", "vid_key", "video_id", "sentence"]
        media.write_csv(root / "MSRVTT_JSFUSION_test.csv", header, chosen)
    elif layout == "Frozen":
        records = [{"image_id": clip, "caption": text} for clip, text in pairs]
        write_json(root / "MSR_VTT.json", {"annotations": records})
        (root / "train_list_jsfusion.txt").write_text("\n".join(train))
        (root / "val_list_jsfusion.txt").write_text("\n".join(test))
        indices = pickle.dumps(dict.fromkeys(test, 0), protocol=2)
        (root / "jsfusion_val_caption_idx.pkl").write_bytes(indices)
    elif layout == "official":
        of = {"train_val": train, "test": test}
        for name, clips in of.items():
            videos = [{"video_id": clip, "split": name.split("_")[0]} for clip in clips]
            said = [{"video_id": clip, "caption": text} for clip, text in used if clip in clips]
            content = {"videos": videos, "sentences": said}
            write_json(root / f"{name}_videodatainfo.json", content)
    elif layout == "CLIP-ViP":
        clip_vip(root, ("MSRVTT_train9k.jsonl", "other.jsonl", "MSRVTT_test1ka.jsonl"))
    else:
        for name, clips in {"train": train, "test": test}.items():
            lines = [{"clip_name": clip, "caption": text} for clip, text in used if clip in clips]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (root / f"{name}.jsonl").write_text(text)


LAYOUTS = {
    "msrvtt": (msrvtt, ("CLIP4Clip", "Frozen", "official", "CLIP-ViP", "ClipBERT")),
    "lsmdc": (lsmdc, ("films", "DGL")),
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


def written(tmp_path, name, layout, make):
    """Records of a set in a layout; `make(clip, path)` makes the media."""
    write, layouts = LAYOUTS[name]
    root = tmp_path / f"{name} {layout}"
    for clip in captions():
        place = "videos" if layout == layouts[0] else "deep/er"
        prefix = "v_" if name == "activitynet" else ""
        make(clip, root / place / f"{prefix}{clip}.mp4")
    write(root, layout)
    out = tmp_path / f"records of {name} {layout}"
    prepare(media.settings(source=name), str(root), str(out))
    return out


@pytest.mark.parametrize(
    "name",
    [n if n == "lsmdc" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS],
)
def test_every_layout_tells_one_story(tmp_path, name):
    def make(clip, path):
        if not (first := tmp_path / f"{clip}.mp4").exists():
            media.write_video(first, start=list(captions()).index(clip))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, path)

    outs = [written(tmp_path, name, layout, make) for layout in LAYOUTS[name][1]]
    stories = [content(out) for out in outs]
    assert stories[0][0] and all(story == stories[0] for story in stories)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Generated clips of moving shapes, and {split: {clip: [its caption]}}."""
    folder = tmp_path_factory.mktemp("toys")
    list(toy.write_clips(str(folder), train=26, test=12))
    story = {"train": {}, "val": {}, "test": {}}
    for line in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()):
        story[line["split"]][f"clip{line['id']}"] = line["captions"][:1]
    story["val"]["clip-of-val"] = ["a caption"]
    return folder, story


COMMON = ("--config.train.steps=100", "--config.optimizer.lr=1e-3")


@pytest.mark.slow
def test_training_on_every_set_gives_the_same_recalls(tmp_path, small, toys, monkeypatch):
    """A caption a clip: what a set does with several is no part of this.

    A set's other layouts give the same records, so that one of them is trained on.
    """
    folder, story = toys
    monkeypatch.setattr(sets, "SENTENCES", story)

    def make(clip, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number = clip.removeprefix("clip")
        shutil.copy(folder / "clips" / (f"{number}.mp4" if number.isdigit() else "0000.mp4"), path)

    metrics, losses = [], []
    for name, (_, layouts) in LAYOUTS.items():
        outs = [written(tmp_path, name, layout, make) for layout in layouts]
        first, *others = map(content, outs)
        assert all(other == first for other in others)
        workdir = tmp_path / f"run of {name}"
        given = {"data.records": outs[0], "tokenizer": small.records / "tokenizer"}
        flags = [f"--config.{key}={value}" for key, value in given.items()]
        small.run(f"--workdir={workdir}", *COMMON, *flags)
        metrics.append(small_run.result(workdir)["metrics"])
        losses.append(small_run.losses(workdir))
    assert all(other == metrics[0] for other in metrics), dict(zip(LAYOUTS, metrics, strict=True))
    assert all(other == losses[0] for other in losses) and len(losses[0]) == 100
    assert losses[0][-1] < 0.9 * losses[0][0]  # something was learned
