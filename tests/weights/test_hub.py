"""Weights by name, with the real client of the hub against a server on this machine."""

from __future__ import annotations

import json
import pathlib
import types

import hub_server
import pytest
import tiny
from huggingface_hub import constants, scan_cache_dir

from uniadapter_jax.common import packaged
from uniadapter_jax.common.digests import write_digests
from uniadapter_jax.common.errors import MachineError, UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.data.tokenizers.clip import load_tokenizer
from uniadapter_jax.runs import tokenizer as tokenizers
from uniadapter_jax.runs.backbone import as_begun
from uniadapter_jax.weights.hub import fetch
from uniadapter_jax.weights.hub.cache import root
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.hub.names import Name, parse, public
from uniadapter_jax.weights.hub.push import push
from uniadapter_jax.weights.layout import read_config
from uniadapter_jax.weights.needed import ADAPTER, BACKBONE, CONFIG, SOURCE, TOKENIZER

CONFIG_JSON = json.dumps(tiny.hf_config()).encode()
WEIGHTS = bytes(range(256)) * 400
CLIP = {
    "config.json": CONFIG_JSON,
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "vocab.json": b"{ }",
    "pytorch_model.bin": b"pickle",
    "flax_model.msgpack": b"flax",
    "README.md": b"# CLIP",
}
NEEDED = {"config.json", "model.safetensors", "tokenizer.json", "vocab.json"}
FIELD = "config.backbone"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        url = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        quick = types.SimpleNamespace(sleep=lambda seconds: None)
        monkeypatch.setattr("huggingface_hub.file_download.time", quick)
        monkeypatch.setattr(fetch, "PAUSE", 0)
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def fetched(place="me/clip", need=BACKBONE):
    found = located(place, FIELD, need)
    return found.place, pathlib.Path(found.directory)


def refused(place="me/clip", need=BACKBONE):
    with pytest.raises(UserError) as caught:
        located(place, FIELD, need)
    assert str(caught.value).startswith(f"{FIELD}={place}"), caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("openai/clip-vit-base-patch32", Name("openai/clip-vit-base-patch32")),
        ("me/x@v1.0", Name("me/x", "v1.0")),
        ("me/x@refs/pr/3", Name("me/x", "refs/pr/3")),
        *((text, None) for text in ("clip", "/a/b", "./a/b", "../b", "a/b/c", "a/..", "a/b@../c")),
        *((text, None) for text in ("random:a/b", "", "a/b@", "a b/c", "~/b", "me/x@a..b")),
        *(
            (text, None) for text in ("weights/blip-base-224", "runs/demo", "data/own")
        ),  # our folders
    ],
)
def test_what_is_a_name(text, name):
    assert parse(text) == name


def test_only_what_is_needed_comes_pinned_and_once(hub, capsys):
    commit = hub.add("me/clip", CLIP)
    place, folder = fetched()
    assert place == f"me/clip@{commit}" and folder.name == commit
    assert set(hub.downloads()) == NEEDED == {file.name for file in folder.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    said = capsys.readouterr().err
    assert "0.1 MB" in said and f"me/clip@{commit[:8]}" in said and str(root()) in said
    assert fetched() == (place, folder)
    asked = len(hub.asked)
    assert fetched(place) == (place, folder)  # what is pinned asks nobody
    assert fetched(place, CONFIG) == fetched(place, TOKENIZER) == (place, folder)
    assert len(hub.asked) == asked and len(hub.downloads()) == len(NEEDED)
    assert not scan_cache_dir(root()).warnings


def test_a_path_that_exists_wins(hub):
    hub.add("me/clip", CLIP)
    pathlib.Path("me/clip").mkdir(parents=True)
    assert fetched() == ("me/clip", pathlib.Path("me/clip")) and not hub.asked
    assert located("random:me/x", FIELD, BACKBONE).place == "random:me/x"
    assert public("me/clip") == "clip" and public("me/other@v1") == "me/other@v1"


def test_parts_of_a_repository(hub):
    hub.add("me/clip", CLIP)
    fetched(need=CONFIG)
    assert hub.downloads() == ["config.json"]
    fetched(need=TOKENIZER)
    fetched(need=BACKBONE)
    assert sorted(hub.downloads()) == sorted(NEEDED)


def test_a_tokenizer_by_name_is_pinned_and_brings_no_more(hub, offline, tmp_path):
    tiny_clip = pathlib.Path(packaged.model("tiny_clip"))
    files = {"tokenizer.json": (tiny_clip / "tokenizer.json").read_bytes()}
    commit = hub.add("me/words", {**files, "model.safetensors": WEIGHTS, "README.md": b"#"})
    config = base_config()
    config.backbone, config.tokenizer = "tiny_clip", "me/words"
    backbone = types.SimpleNamespace(
        source=str(tiny_clip),
        model=types.SimpleNamespace(config=read_config(tiny_clip / "config.json")),
    )
    chosen, tokenizer, folder = tokenizers.choose(config, backbone)
    assert chosen.tokenizer == f"me/words@{commit}" and config.tokenizer == "me/words"
    assert set(hub.downloads()) == set(files) == {f.name for f in pathlib.Path(folder).iterdir()}
    assert tokenizer.fingerprint == load_tokenizer(tiny_clip).fingerprint
    (tmp_path / "config.json").write_text(chosen.to_json_best_effort())
    hub.add("me/words", {"README.md": b"moved on"})
    assert as_begun(config, tmp_path).tokenizer == f"me/words@{commit}"
    with pytest.raises(UserError, match=r"me/words: .* has no tokenizer of a CLIP"):
        tokenizers.choose(config, backbone)
    offline()
    assert tokenizers.choose(chosen, backbone)[2] == folder


def test_shards_and_files_that_digests_list(hub, tmp_path):
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 99 for i in (1, 2)}
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    ours = {"config.json": CONFIG_JSON, "fingerprint.json": b"{}", "notes.txt": b"listed"}
    for name, content in ours.items():
        (tmp_path / name).write_bytes(content)
    write_digests(tmp_path, ours)
    listed = {"digests.json": (tmp_path / "digests.json").read_bytes()}
    whole = {**ours, **listed, **shards, "model.safetensors.index.json": json.dumps(index).encode()}
    hub.add("me/clip", {**whole, "other.txt": b"", "tf_model.h5": b""})
    assert {file.name for file in fetched()[1].iterdir()} == set(whole)
    hub.add("me/clip", {name: content for name, content in whole.items() if "00002-" not in name})
    assert "lacks model-00002-of-00002.safetensors" in refused()


def test_a_cut_download_goes_on_where_it_was(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.add("me/clip", CLIP)
    hub.cuts["model.safetensors"] = [30_000, 20_000]
    _, folder = fetched()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [asked for _, path, asked in hub.asked if path.endswith("model.safetensors") and asked]
    assert ranges == ["bytes=30000-", "bytes=50000-"]


def test_a_download_that_breaks_leaves_what_is_complete(hub):
    hub.add("me/clip", CLIP)
    hub.cuts["model.safetensors"] = [0] * 50
    assert "cannot be reached" in refused()
    before = set(hub.downloads()) - {"model.safetensors"}
    hub.cuts.clear()
    hub.asked.clear()
    fetched()
    assert "model.safetensors" in hub.downloads() and not before & set(hub.downloads())


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_wrong_hash_is_found_and_mended(hub, name):
    hub.add("me/clip", CLIP)
    hub.damaged[name] = CLIP[name][:-1] + b"!"
    said = refused(f"me/clip@{hub.refs['me/clip', 'main']}")
    kind = "SHA-256" if name.endswith("safetensors") else "git hash"
    assert f"{name} was damaged" in said and kind in said and "run the same command" in said
    hub.damaged.clear()
    _, folder = fetched()
    assert (folder / name).read_bytes() == CLIP[name]


def test_a_file_that_changed_in_the_cache_is_found(hub, offline):
    hub.add("me/clip", CLIP)
    place, folder = fetched()
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(b"?" + WEIGHTS[1:])
    assert "model.safetensors was damaged" in refused(place)
    assert not blob.exists()
    assert fetched(place)[1].joinpath("model.safetensors").read_bytes() == WEIGHTS
    (folder / "model.safetensors").resolve().write_bytes(b"")
    offline()
    assert "model.safetensors was damaged" in refused(place)


def test_offline_from_the_cache(hub, offline, capsys):
    commit = hub.add("me/clip", CLIP)
    place, folder = fetched()
    hub.failing = 503
    assert fetched() == (place, folder)
    assert "503" in capsys.readouterr().err
    offline()
    assert fetched() == fetched(place) == (place, folder)
    for note in (folder.parents[1] / "uniadapter_jax").iterdir():  # as others fill a cache
        note.unlink()
    assert fetched() == (place, folder)
    (folder / "config.json").unlink()
    for missing in ("me/clip", place, "me/other", "me/clip@v2"):
        said = refused(missing)
        assert "HF_HUB_OFFLINE is set" in said and str(root()) in said and "Connect" in said
    assert commit in place


def test_without_a_network_the_run_may_be_tried_again(hub):
    hub.server_close()
    hub.shutdown()
    with pytest.raises(MachineError, match=r"cannot be reached.* Connect and .*tiny_clip"):
        located("me/clip", FIELD, BACKBONE)


def test_revisions(hub):
    old = hub.add("me/clip", CLIP)
    tag = hub.add("me/clip", {**CLIP, "tokenizer.json": b"[]"}, branch="refs/pr/3")
    new = hub.add("me/clip", {**CLIP, "model.safetensors": WEIGHTS[1:]})
    assert fetched()[0] == f"me/clip@{new}"
    assert fetched("me/clip@refs/pr/3")[0] == f"me/clip@{tag}"
    assert fetched(f"me/clip@{old}")[0] == f"me/clip@{old}"
    assert hub.downloads().count("config.json") <= 3
    assert "has no revision 'v9'" in refused("me/clip@v9")


def test_only_pickles(hub):
    hub.add("me/clip", {name: CLIP[name] for name in ("config.json", "pytorch_model.bin")})
    said = refused()
    assert "no model.safetensors, only pytorch_model.bin" in said
    assert "python -m uniadapter_jax.convert me/clip DEST" in said
    assert "pytorch_model.bin" not in hub.downloads()
    _, folder = fetched(need=SOURCE)
    assert (folder / "pytorch_model.bin").is_file()


@pytest.mark.parametrize(
    ("files", "need", "words"),
    [
        ({"README.md": b""}, BACKBONE, "has no config.json, so it is no backbone"),
        ({"adapter_config.json": b"{}"}, BACKBONE, "is an adapter"),
        ({"config.json": CONFIG_JSON}, BACKBONE, "has no model.safetensors"),
        ({"config.json": CONFIG_JSON}, ADAPTER, "has no adapter_config.json, so it is no adapter"),
        ({"config.json": CONFIG_JSON}, SOURCE, "holds none of model.safetensors"),
    ],
)
def test_a_repository_of_something_else(hub, files, need, words):
    hub.add("me/clip", files)
    assert words in refused(need=need)


def test_another_family_costs_a_config(hub):
    hub.add("me/clip", {**CLIP, "config.json": b'{"model_type": "bert"}'})
    with pytest.raises(UserError, match="model_type is 'bert'"):
        located("me/clip", FIELD, BACKBONE)
    assert hub.downloads() == ["config.json"]


def test_who_may_not_see_it(hub, monkeypatch):
    hub.add("me/clip", CLIP)
    assert "no such repository, or a private one" in refused("me/clap")
    hub.gated.add("me/clip")
    assert f"is gated. Accept its terms at {hub.url}/me/clip" in refused()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    assert "hf auth login" in refused()
    hub.gated.clear()
    hub.private.add("me/clip")
    assert "private" in refused() and "hf auth login" in refused()
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    assert fetched()[0].startswith("me/clip@")


def test_a_renamed_repository(hub, capsys):
    commit = hub.add("me/clip", CLIP)
    hub.renamed["you/old"] = "me/clip"
    assert fetched("you/old")[0] == f"me/clip@{commit}"
    assert f"{FIELD}=you/old: the repository is called me/clip now" in capsys.readouterr().err


def test_push_and_back(hub, tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"abc", "README.md": b"#"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    made = push(folder, "me/adapter")
    assert made.address == f"{hub.url}/me/adapter/commit/{hub.refs['me/adapter', 'main']}"
    place, back = fetched("me/adapter", ADAPTER)
    assert place == made.name
    assert {file.name: file.read_bytes() for file in back.iterdir()} == {
        name: files[name] for name in ("adapter_config.json", "adapter_model.safetensors")
    }


def test_a_push_that_is_refused(hub, tmp_path, monkeypatch):
    for repository, words in (("others/x", "refuses (403"), ("no name!", "is no name")):
        with pytest.raises(UserError) as caught:
            push(tmp_path, repository)
        assert words in str(caught.value) and "is complete; push it again" in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"--push=me/x.*(refuses|no such)"):
        push(tmp_path, "me/x")


def test_a_push_without_a_network(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MachineError, match=r"cannot be reached.*is complete"):
        push(tmp_path, "me/x")
