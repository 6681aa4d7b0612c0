"""A run's adapter leaves as a directory and comes back bit for bit; nothing else is let in."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import small_run
import yaml
from absl import logging
from ml_collections import ConfigDict

from uniadapter_jax import load_model
from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.loading.pipeline import clip_batches
from uniadapter_jax.data.records import open_records
from uniadapter_jax.export import export, main
from uniadapter_jax.inference.model_card import measured
from uniadapter_jax.tasks.retrieval.metrics import retrieval_ranks
from uniadapter_jax.weights.hub.push import push
from uniadapter_jax.weights.safetensors_file import read_safetensors, write_safetensors

TEXTS = ["a red disc number 3", "box in green", "nothing of the kind"]


def pictures(count=3, side=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def backbone(small):
    return f"random:{small.backbone}"


@pytest.fixture(scope="module")
def exported(small, whole):
    export(whole, small.root / "exported", license="apache-2.0")
    return small.root / "exported"


@pytest.fixture(scope="module")
def lora(small):
    """The workdir of a LoRA at attention and MLP of both towers, and at the patches."""
    flags = "--config.method.targets=('attn.q','attn.out','fc1','projection','patch_embedding')"
    scale = "--config.method.alpha=20"  # a scale that is not 1
    small.run("--workdir=lora", "--config.train.steps=4", flags, scale, method="lora")
    return small.root / "lora"


@pytest.fixture(scope="module")
def lora_exported(small, lora):
    export(lora, small.root / "lora_exported")
    return small.root / "lora_exported"


def test_a_fresh_process_computes_the_same_bits(small, whole, exported, backbone, tmp_path):
    code = f"""
import numpy as np, uniadapter_jax
model = uniadapter_jax.load_model({backbone!r}, {str(exported)!r})
frames = model.encode_frames(np.load("pixels.npy"))
text = model.encode_text({TEXTS!r})
np.savez("found.npz", frames=frames, text=text, sims=model.similarity(text, frames))
"""
    np.save(tmp_path / "pixels.npy", pictures())
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    found = np.load(tmp_path / "found.npz")
    # Here: the same model with what the checkpoint holds, read by another way.
    model = load_model(backbone, exported)
    state = small_run.checkpoint(whole)
    trained = flat_names(model.partition.trainable)
    for name, leaf in trained.items():
        key = "['trainable']" + "".join(f"['{part}']" for part in name.split("."))
        np.testing.assert_array_equal(leaf, state[key])
    text, frames = model.encode_text(TEXTS), model.encode_frames(pictures())
    np.testing.assert_array_equal(found["text"], text)
    np.testing.assert_array_equal(found["frames"], frames)
    np.testing.assert_array_equal(found["sims"], model.similarity(text, frames))
    # The adapter matters.
    assert np.abs(load_model(backbone).encode_frames(pictures()) - frames).max() > 1e-3


def test_the_library_finds_what_the_run_found(small, whole, exported, backbone):
    """Features by the public functions give the ranks of result.json."""
    found = small_run.result(whole)
    records = open_records(str(small.records), "test")
    config = found["config"]["data"]
    model = load_model(backbone, exported, batch_size=16)
    frames, masks = [], []
    batches = clip_batches(records, ConfigDict(config), image_size=32, global_batch=len(records))
    for batch in batches:
        flat = model.encode_frames(batch["frames"].reshape(-1, *batch["frames"].shape[2:]))
        frames.append(flat.reshape(*batch["frames"].shape[:2], -1))
        masks.append(batch["frame_mask"])
    captions = [caption for clip in records.captions for caption in clip]
    owners = np.repeat(np.arange(len(records)), [len(clip) for clip in records.captions])
    scores = model.similarity(
        model.encode_text(captions), np.concatenate(frames), np.concatenate(masks)
    )
    ranks = retrieval_ranks(scores, owners, v2t="best_caption", ties="optimistic")
    for way in ("t2v", "v2t"):
        assert ranks[way].tolist() == found["ranks"][way]


@pytest.mark.parametrize("selection", ["last", "val"])
def test_a_card_of_validation_data_says_so(whole, selection):
    result = {**small_run.result(whole), "selection": selection}
    (test, *_), (val, *_) = (measured({**result, "split": split}) for split in ("test", "val"))
    assert "9 test clips" in test and "9 validation clips" in val
    assert ("flatters" in val) == (selection == "val") and "flatters" not in test


def test_the_card_says_what_was_measured_and_its_code_runs(small, whole, exported, backbone):
    card = (exported / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    meta = yaml.safe_load(header)
    assert meta["library_name"] == "uniadapter_jax" and meta["license"] == "apache-2.0"
    found = small_run.result(whole)
    for values in found["metrics"].values():
        assert " | ".join(f"{value:.1f}" for value in values.values()) in body
    assert found["fingerprint"] in body and str(small.root) not in card
    (code,) = re.findall("```python\n(.*?)```", body, re.DOTALL)
    code = code.replace("BACKBONE", backbone).replace("THIS_DIRECTORY", str(exported))
    place = {"pixels": pictures(6), "clips": 2}
    exec(code, place)
    assert place["cosines"].shape == (1, 2)


def test_the_tokenizer_travels_where_the_backbone_has_none(small, exported, backbone):
    assert (exported / "tokenizer.json").is_file() or (exported / "vocab.json").is_file()
    with pytest.raises(UserError, match="has no tokenizer"):
        load_model(backbone).encode_text(TEXTS)
    model = load_model(backbone, exported)
    ids = model.tokenizer.encode(TEXTS, 10)
    np.testing.assert_array_equal(model.encode_text(ids), model.encode_text(TEXTS))


def changed(exported, place, config=None, tensors=None):
    """A copy of an adapter with other fields, or other tensors; as it was before digests."""
    shutil.copytree(exported, place)
    file, weights = place / "adapter_config.json", place / "adapter_model.safetensors"
    fields = {**json.loads(file.read_text()), **(config or {})}
    file.write_text(json.dumps({k: v for k, v in fields.items() if k != "tensors_sha256"}))
    tensors = tensors or {k: v.copy() for k, v in read_safetensors(weights).items()}
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    weights.unlink()
    write_safetensors(weights, specs, tensors.items(), {})
    return place


def test_an_adapter_of_before_digests_is_loaded_with_a_word(exported, backbone, tmp_path, caplog):
    logging.set_verbosity(logging.WARNING)
    with caplog.at_level("WARNING", "absl"):
        options = json.loads((exported / "adapter_config.json").read_text())["options"]
        del options["from_layer"]  # which came later
        old = load_model(backbone, changed(exported, tmp_path / "old", {"options": options}))
        assert "without digests" in caplog.text
        caplog.clear()
        new = load_model(backbone, exported)
        assert not caplog.text
    np.testing.assert_array_equal(old.encode_text(TEXTS), new.encode_text(TEXTS))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"format": "uniadapter_jax/2"}, ["'uniadapter_jax/2'", "'uniadapter_jax/1'"]),
        ({"method_version": 7}, ["version 7", "version 1"]),
        ({"options": {"bottleneck": 8, "share": 1}}, ["['bottleneck', 'share']", "'shared_dim'"]),
        ({"method": "prompt"}, ["'prompt' is not known"]),
        ({"backbone_fingerprint": "abc"}, ["fingerprint abc", "small", "has"]),
        ({"tokenizer_fingerprint": "abc"}, ["trained with abc", "tokenizer=DIR"]),
    ],
)
def test_another_adapter_is_refused_with_both_sides(exported, backbone, tmp_path, config, words):
    with pytest.raises(UserError) as caught:
        load_model(backbone, changed(exported, tmp_path / "other", config))
    assert all(word in str(caught.value) for word in words), caught.value


def test_all_tensors_that_do_not_fit_are_in_one_report(exported, backbone, tmp_path):
    tensors = dict(read_safetensors(exported / "adapter_model.safetensors"))
    tensors["adapters.extra"] = tensors.pop("adapters.attn_bias")
    tensors["adapters.mlp_bias"] = tensors["adapters.mlp_bias"][:, :3].copy()
    tensors["text.blocks.after_mlp.up_bias"] = tensors["text.blocks.after_mlp.up_bias"].astype("f2")
    with pytest.raises(UserError) as caught:
        load_model(backbone, changed(exported, tmp_path / "other", tensors=tensors))
    said = str(caught.value)
    assert "4 problems" in said and "missing: adapters.attn_bias" in said
    assert "unknown: adapters.extra" in said and "(2, 3), this model has (2, 16)" in said
    assert "float16, expected float32" in said


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("place", ["", "peft"])
def test_a_changed_file_of_an_adapter_is_named(lora_exported, backbone, tmp_path, file, place):
    shutil.copytree(lora_exported, tmp_path / "other")
    path = tmp_path / "other" / place / file
    content = bytearray(path.read_bytes())
    if path.suffix == ".json":
        content += b" "
    else:
        content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: has changed since it was written"):
        load_model(backbone, tmp_path / "other")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_a_copy_for_peft_is_named(lora_exported, backbone, tmp_path, file):
    shutil.copytree(lora_exported, tmp_path / "other")
    (tmp_path / "other" / "peft" / file).unlink()
    with pytest.raises(UserError, match=f"peft/{file}: "):
        load_model(backbone, tmp_path / "other")


def test_an_adapter_that_asks_for_memory_gets_none(exported, backbone, tmp_path):
    """Its tensors are compared with what the options mean before anything is allocated."""
    options = json.loads((exported / "adapter_config.json").read_text())["options"]
    huge = changed(exported, tmp_path / "other", {"options": {**options, "bottleneck": 10**9}})
    with pytest.raises(UserError, match="problems with its tensors"):
        load_model(backbone, huge)


def test_a_tokenizer_that_is_nowhere_is_an_error(small, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    found = (small.records / "tokenizer").rename(small.records / "away")
    try:
        with pytest.raises(UserError) as caught:
            export(workdir, tmp_path / "out")
        assert "--tokenizer=DIR" in str(caught.value)
        assert f"{small.records / 'tokenizer'} is no directory" in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        export(workdir, tmp_path / "out", tokenizer=str(small.records / "away"))
    finally:
        found.rename(small.records / "tokenizer")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_merged_card_names_the_classes_of_its_config(small, lora, tmp_path):
    export(lora, tmp_path / "merged", merge=True)
    card = (tmp_path / "merged" / "README.md").read_text()
    (name,) = json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"]
    assert f"from transformers import {name}\n" in card and f"{name}.from_pretrained" in card


def test_a_merged_lora_computes_what_the_adapted_backbone_does(small, lora, backbone, tmp_path):
    export(lora, tmp_path / "apart")
    export(lora, tmp_path / "merged", merge=True)
    adapted, bare = load_model(backbone, tmp_path / "apart"), load_model(backbone)
    merged = load_model(tmp_path / "merged")
    assert merged.method == "zero_shot" and merged.fingerprint != adapted.fingerprint
    ids = merged.tokenizer.encode(TEXTS, 16)
    for name, inputs in (("encode_frames", pictures()), ("encode_text", ids)):
        wanted = getattr(adapted, name)(inputs)
        close = np.abs(getattr(merged, name)(inputs) - wanted).max() / np.abs(wanted).max()
        far = np.abs(getattr(bare, name)(inputs) - wanted).max() / np.abs(wanted).max()
        assert close < 2e-6 and far > 1e-3
    assert "transformers" in (tmp_path / "merged" / "README.md").read_text()


def test_a_merged_projection_is_the_trained_one(small, backbone, tmp_path):
    small.run("--workdir=projected", "--config.train.steps=3", method="projection")
    export(small.root / "projected", tmp_path / "apart")
    export(small.root / "projected", tmp_path / "merged", merge=True)
    merged = load_model(tmp_path / "merged")
    ids = merged.tokenizer.encode(TEXTS, 16)
    apart = load_model(backbone, tmp_path / "apart")
    np.testing.assert_array_equal(apart.encode_text(ids), merged.encode_text(ids))


def test_a_merged_full_is_the_saved_backbone(small, tmp_path):
    flags = ("--workdir=tuned", "--config.train.steps=3", "--save-backbone=tuned_backbone")
    small.run(*flags, method="full")
    export(small.root / "tuned", tmp_path / "merged", merge=True)
    ours, saved = (
        read_safetensors(place / "model.safetensors")
        for place in (tmp_path / "merged", small.root / "tuned_backbone")
    )
    assert set(ours) == set(saved)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, saved[name])
    with pytest.raises(UserError, match="pass --merge"):
        export(small.root / "tuned", tmp_path / "apart")


def test_peft_tensors_are_the_factors_of_every_layer(lora, tmp_path):
    """Names and shapes; that PEFT computes the same with them is a parity test."""
    export(lora, tmp_path / "out")
    ours = read_safetensors(tmp_path / "out" / "adapter_model.safetensors")
    theirs = read_safetensors(tmp_path / "out" / "peft" / "adapter_model.safetensors")
    layer = "base_model.model.vision_model.encoder.layers.1.mlp.fc1"
    a = ours["vision.blocks.mlp.fc1.delta.a_kernel"][1]
    np.testing.assert_array_equal(theirs[f"{layer}.lora_A.weight"], a.T)
    patches = "base_model.model.vision_model.embeddings.patch_embedding"
    assert theirs[f"{patches}.lora_A.weight"].shape == (8, 3, 8, 8)
    assert theirs[f"{patches}.lora_B.weight"].shape == (48, 8, 1, 1)
    config = json.loads((tmp_path / "out" / "peft" / "adapter_config.json").read_text())
    assert config["r"] == 8 and len(config["target_modules"]) * 2 == len(theirs) == 2 * 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workdir=whole", "--merge"], "cross_modal_adapter is not linear"),
        (["--workdir=whole", "--step=7"], "no checkpoint of step 7, it has [18, 20]"),
        (["--workdir=media"], "media holds no config.json, so it is no workdir"),
        (["--workdir=none"], "zero_shot trains nothing"),
        (["--workdir=moved"], "backbone gone, which is no directory seen from"),
        (["--workdir=whole", "--backbone=random:other.json"], "pass --backbone=DIR"),
    ],
)
def test_what_cannot_be_exported(small, whole, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(small.root)
    if arguments == ["--workdir=none"]:
        small.run("--workdir=none", method="zero_shot")
    if arguments == ["--workdir=moved"]:
        shutil.copytree(whole, small.root / "moved")
        written = json.loads((whole / "config.json").read_text())
        (small.root / "moved" / "config.json").write_text(
            json.dumps({**written, "backbone": "gone"})
        )
    changed_config = json.loads(small.backbone.read_text())
    changed_config["text_config"]["hidden_act"] = "gelu"
    (small.root / "other.json").write_text(json.dumps(changed_config))
    assert main([*arguments, f"--to={tmp_path / 'out'}"]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the HuggingFace hub as an upload asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked[self.path] = body
        here = f"{self.server.url}/me/clip"
        if self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file, **plain} for file in files]}
        else:
            answer = {
                "/api/repos/create": {"url": here, "name": "me/clip"},
                "/api/validate-yaml": {"errors": [], "warnings": []},
                "/api/models/me/clip/commit/main": {
                    "commitUrl": f"{here}/commit/1",
                    "commitOid": "1",
                },
            }[self.path]
        self._answer(answer)

    def do_GET(self):
        self._answer({"id": "me/clip", "siblings": [], "sha": "0", "private": False})

    def _answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


PUSH = """
import sys
from uniadapter_jax.weights.hub.push import push
print(push(*sys.argv[1:]).address)
"""


def test_push_uploads_every_file(exported, hub, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(exported), "me/clip"],
        env={**os.environ, **environment, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/clip/commit/1"
    sent = [json.loads(line) for line in hub.asked["/api/models/me/clip/commit/main"].splitlines()]
    files = {line["value"]["path"] for line in sent if line["key"] == "file"}
    assert files == {path.name for path in exported.iterdir()}


def test_push_without_a_hub_keeps_the_directory(exported):
    with pytest.raises(UserError, match="is complete; push it again"):
        push(exported, "not a repository name!")


def test_an_adapter_keeps_how_frames_were_taken(small, exported, backbone, tmp_path):
    stored = {"sampling": "fps", "fps": 1.0, "short_side": 224, "quality": 95}
    kept = {"frames": 3, "sampling": "evenly", "prepare": stored}
    assert json.loads((exported / "adapter_config.json").read_text())["clips"] == kept
    model = load_model(backbone, exported)
    assert model.clips.to_json() == kept and not model.clips.assumed
    old = load_model(backbone, changed(exported, tmp_path / "old", {"clips": {"frames": 5}}))
    assert old.clips.frames == 5 and old.clips.assumed[:2] == ("sampling", "prepare.sampling")
    for clips in ({"frames": 0}, {"prepare": {"fps": "1"}}, {"sampling": "all"}, {"prepare": 3}):
        odd = changed(exported, tmp_path / str(clips), {"clips": clips})
        with pytest.raises(UserError, match=r"clips[.]\w+"):
            load_model(backbone, odd)
