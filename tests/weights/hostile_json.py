"""Hostile JSON, headers and directories of weights, as data; and a child that tries them all.

`python hostile_json.py ROOT WORK SEED COUNT` prints what happened as one line of JSON; it never
imports a test.
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sound_weights
from memory import peak_mb
from openai_layout import to_openai

from uniadapter_jax import load_model
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.convert import convert_weights
from uniadapter_jax.weights.safetensors_file import read_safetensors
from uniadapter_jax.weights.sources import Hints

# JSON texts that stand in place of a value.
VALUES = (
    *("null", "[]", "{}", '""', '"x"', "true", "0", "-1", "1", "1000000000", "2147483648"),
    *("9" * 400, "9" * 5000, "1e300", "-0.5", "1e-320", "NaN", "-Infinity", "1e999"),
    *('"\\u001b[31m\\n"', '"\\ud800"', '"../../etc/passwd"', '"/dev/zero"', '{"a": 1, "a": 2}'),
    *("[" * 10_000, "[null, [1], {}]", "[" + ",".join(["[]"] * 1000) + "]"),
)
_MARK = "@@here@@"

Case = tuple[str, Callable[[pathlib.Path], Any]]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = list(value.items())[:40]
    elif isinstance(value, list):
        items = list(enumerate(value))[:3]
    for name, entry in items:
        yield from _paths(entry, (*path, name))


def mutated(value: Any, rng: np.random.Generator) -> tuple[str, str]:
    """(JSON with a hostile value, where it is)."""
    value = copy.deepcopy(value)
    paths = list(_paths(value))
    path, text = paths[rng.integers(len(paths))], VALUES[rng.integers(len(VALUES))]
    if not path:
        return text, f"{text:.30}"
    node = value
    for name in path[:-1]:
        node = node[name]
    if rng.random() < 0.1:
        del node[path[-1]]
        return json.dumps(value), f"{path} deleted"
    node[path[-1]] = _MARK
    return json.dumps(value).replace(f'"{_MARK}"', text), f"{path} = {text:.30}"


def _write(path: pathlib.Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _copy(root: pathlib.Path, name: str, work: pathlib.Path, *, digests: bool) -> pathlib.Path:
    """A copy; without digests it is as others, or earlier versions, write one."""
    place = work / name
    shutil.copytree(root / name, place)
    if not digests:
        for file in ("digests.json", "fingerprint.json"):
            (place / file).unlink(missing_ok=True)
        config = place / "adapter_config.json"
        if config.exists():
            fields = json.loads(config.read_text())
            del fields["tensors_sha256"]
            config.write_text(json.dumps(fields))
            weights = place / "adapter_model.safetensors"
            header, data = _split(weights.read_bytes())
            del header["__metadata__"]["config_sha256"]
            weights.write_bytes(_joined(json.dumps(header), data))
    return place


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: str, data: bytes, length: int | None = None) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + data


JSON_FILES = (
    *[("clip", f) for f in ("config.json", "tokenizer.json", "tokenizer_config.json")],
    *[("clip", f) for f in ("special_tokens_map.json", "fingerprint.json", "digests.json")],
    *[("blip", f) for f in ("config.json", "fingerprint.json", "digests.json")],
    *[(name, "adapter_config.json") for name in ("cma", "lora", "uniadapter")] * 3,
    *[("clip", "config.json"), ("blip", "config.json")] * 3,
)


def json_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """A value of one of our directories' JSON files is hostile."""
    name, file = JSON_FILES[rng.integers(len(JSON_FILES))]
    digests = file in ("digests.json", "fingerprint.json") or rng.random() < 0.1
    text, what = mutated(json.loads((root / name / file).read_text()), rng)

    def run(work: pathlib.Path) -> Any:
        place = _copy(root, name, work, digests=digests)
        _write(place / file, text)
        return sound_weights.numbers(sound_weights.LOADERS[name](place, root))

    return f"{name}/{file}: {what}", run


def added_tokens_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """added_tokens.json of others."""
    text, what = mutated({"a cat": 529, "<more>": 3}, rng)

    def run(work: pathlib.Path) -> Any:
        place = _copy(root, "clip", work, digests=False)
        _write(place / "added_tokens.json", text)
        return sound_weights.numbers(load_model(place))

    return f"added_tokens.json: {what}", run


def random_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """Random weights of a hostile config; one of its towers, so that none is BERT, at full size."""
    name, section = (
        ("clip", "blip")[rng.integers(2)],
        ("vision_config", "text_config")[rng.integers(2)],
    )
    config = json.loads((root / name / "config.json").read_text())
    text, what = "{}", ""
    while text in ("{}", "null"):
        text, what = mutated(config[section], rng)
    text = json.dumps({**config, section: _MARK}).replace(f'"{_MARK}"', text)

    def run(work: pathlib.Path) -> Any:
        _write(work / "config.json", text)
        return load_model(f"random:{work / 'config.json'}").fingerprint

    return f"random {name}, {section}: {what}", run


def header_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """A header of safetensors with a hostile value, name, offset or length."""
    name = ("clip", "cma")[rng.integers(2)]
    file = "model.safetensors" if name == "clip" else "adapter_model.safetensors"
    header, data = _split((root / name / file).read_bytes())
    names = [key for key in header if key != "__metadata__"]
    entry = header[names[rng.integers(len(names))]]
    length, kind = None, int(rng.integers(9))
    what = f"kind {kind}"
    if kind < 4:
        text, what = mutated(header, rng)
    else:
        first = int(rng.choice([-1, 0, 1, 10**9, 2**62, 2**64]))
        second = int(rng.choice([0, 7, 10**9, 2**63, 2**70]))
        if kind == 4:
            entry["data_offsets"] = [first, second]
        elif kind == 5:
            entry["shape"] = [[first], [first, second], [0, 2**62], [1] * 70][rng.integers(4)]
        elif kind == 6:
            entry["dtype"] = ["F8_E4M3", "C64", "f32", "", None, [], 3][rng.integers(7)]
        elif kind == 7:
            header[["\x1b[31m", "a\x00b", "../x", "x" * 10**5, ""][rng.integers(5)]] = entry
        text = json.dumps(header)
        if kind == 8:
            length = int(rng.choice([0, 7, 10**9, 2**40, 2**63, len(data) + len(text), 10**6]))
        what += f" {first} {second} {length}"

    def run(work: pathlib.Path) -> Any:
        place = _copy(root, name, work, digests=bool(kind % 2))
        (place / file).write_bytes(_joined(text, data, length))
        return sound_weights.numbers(sound_weights.LOADERS[name](place, root))

    return f"{name}/{file}: {what}", run


def index_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """An index of shards with a hostile value; some go in a circle."""
    names = list(read_safetensors(root / "clip" / "model.safetensors"))
    weight_map = dict.fromkeys(names, "shard.safetensors")
    loops = ["model.safetensors.index.json", "pytorch_model.bin.index.json", "loop.safetensors"]
    circle = int(rng.integers(6))
    if circle < 3:
        weight_map[names[0]] = loops[circle]
        text, what = json.dumps({"weight_map": weight_map}), loops[circle]
    else:
        text, what = mutated({"metadata": {"total_size": 3}, "weight_map": weight_map}, rng)
    stem = ("model.safetensors", "pytorch_model.bin")[rng.integers(2)]

    def run(work: pathlib.Path) -> Any:
        place = _copy(root, "clip", work, digests=False)
        (place / "model.safetensors").rename(place / "shard.safetensors")
        (place / "loop.safetensors").symlink_to(place / "loop.safetensors")
        _write(place / f"{stem}.index.json", text)
        if stem == "model.safetensors":
            return load_model(place).fingerprint
        return convert_weights(str(place), str(work / "made"))

    return f"{stem}.index.json: {what}", run


_OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {
            **{"image_size": 32, "layers": 4, "width": 48, "head_width": 12, "mlp_ratio": 2.0},
            **{"patch_size": 8, "norm_kwargs": {"eps": 1e-6}},
        },
        "text_cfg": {
            **{"context_length": 77, "vocab_size": 530, "width": 32, "heads": 4, "layers": 2},
            "mlp_ratio": 2.0,
        },
    },
    "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073]},
}


def source_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """What `convert` reads: open_clip's config, the preprocessor's, tensors of odd shapes."""
    tensors = read_safetensors(root / "clip" / "model.safetensors")
    kind = int(rng.integers(3))
    config = sound_weights.clip_config()
    pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    openai = to_openai(tensors)
    victim = sorted(openai)[rng.integers(len(openai))]
    odd = [np.zeros(s, np.float32) for s in ((), (0,), (0, 3), (1,) * 5, (3, 0, 7, 7), (2**16,))]
    odd += [np.zeros(3, np.int64), np.full((2, 3), np.nan, np.float32)]
    chosen = odd[rng.integers(len(odd))]
    text, what = mutated((_OPEN_CLIP, pixels, {})[kind], rng)

    def run(work: pathlib.Path) -> Any:
        given = tensors if kind == 1 else openai
        if kind == 2:
            given = {**openai, victim: chosen}
        source = sound_weights.write_huggingface(work / "source", config, given)
        if kind == 0:
            _write(source / "open_clip_config.json", text)
        if kind == 1:
            _write(source / "preprocessor_config.json", text)
        hints = Hints(heads=(4, 4)) if kind == 2 else Hints()
        return convert_weights(str(source), str(work / "made"), hints=hints)

    named = f"{victim} {chosen.dtype} {chosen.shape}" if kind == 2 else what
    return f"convert, {('open_clip', 'preprocessor', 'shape')[kind]}: {named}", run


def place_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """Pipes, directories, devices, circles of links and large files in place of files."""
    pairs = [
        *[("clip", f) for f in ("config.json", "model.safetensors", "digests.json", "merges.txt")],
        *[("clip", f) for f in ("fingerprint.json", "tokenizer.json", "tokenizer_config.json")],
        *[("cma", f) for f in ("adapter_config.json", "adapter_model.safetensors", "vocab.json")],
        *[("blip", f) for f in ("vocab.txt", "config.json")],
        ("lora", "peft/adapter_config.json"),
        ("lora", "peft/adapter_model.safetensors"),
    ]
    name, file = pairs[rng.integers(len(pairs))]
    kinds = ("pipe", "directory", "/dev/zero", "circle", "nothing", "large", "empty")
    kind = kinds[rng.integers(len(kinds))]
    digests = bool(rng.integers(2))

    def run(work: pathlib.Path) -> Any:
        path = _copy(root, name, work, digests=digests) / file
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "large":  # and sparse
            with path.open("wb") as out:
                out.truncate(10**10)
        elif kind == "empty":
            path.touch()
        else:
            to = {"circle": path.name, "nothing": "gone"}.get(kind, kind)
            path.symlink_to(to)
        return sound_weights.numbers(sound_weights.LOADERS[name](work / name, root))

    return f"{name}/{file}: {kind}", run


_FILLINGS = {
    "lists": lambda n: '{"a": [' + "[]," * (n // 3) + "[]]}",
    "objects": lambda n: '{"a": [' + "{}," * (n // 3) + "{}]}",
    "keys": lambda n: "{" + ",".join(f'"{i:x}":1' for i in range(n // 9)) + "}",
    "vocabulary": lambda n: (
        '{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {'
        + ",".join(f'"{i:x}":{i}' for i in range(n // 15))
        + '}, "merges": []}}'
    ),
    "merges": lambda n: "\n".join(f"{i:x} {i + 1:x}" for i in range(n // 12)),
    "lines": lambda n: "\n".join(f"{i:x}" for i in range(n // 7)),
}


def large_case(root: pathlib.Path, rng: np.random.Generator) -> Case:
    """A file that is as large as it may be, and costs most when it is parsed."""
    files = [("clip", f, 2**20) for f in ("config.json", "fingerprint.json", "digests.json")]
    files += [("clip", f, 2**23) for f in ("tokenizer.json", "added_tokens.json", "merges.txt")]
    files += [("blip", "vocab.txt", 2**23), ("cma", "adapter_config.json", 2**20)]
    files += [("clip", "model.safetensors", 2**22)]
    name, file, most = files[rng.integers(len(files))]
    filling = list(_FILLINGS)[rng.integers(len(_FILLINGS))]

    def run(work: pathlib.Path) -> Any:
        place = _copy(root, name, work, digests=file in ("fingerprint.json", "digests.json"))
        if file == "merges.txt":
            (place / "tokenizer.json").unlink()
        content = _FILLINGS[filling](most - 2**10)
        if file == "model.safetensors":
            (place / file).write_bytes(_joined(content, b""))
        else:
            _write(place / file, content)
        return sound_weights.numbers(sound_weights.LOADERS[name](place, root))

    return f"{name}/{file}: large, of {filling}", run


KINDS = (json_case, json_case, json_case, header_case, index_case, source_case, place_case)
KINDS += (random_case, added_tokens_case, large_case)


def cases(root: pathlib.Path, seed: int, count: int) -> Iterator[Case]:
    """`count` of them."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield KINDS[i % len(KINDS)](root, rng)


def attempt(case: Case, work: pathlib.Path) -> str:
    """ "told", "loaded", or a report of what must not be."""
    name, run = case
    work.mkdir()
    began = time.process_time()
    try:
        run(work)
        outcome = "loaded"
    except UserError as error:
        said = str(error)
        outcome = "told"
        if not any(part in said for part in (str(work), "made", "source")):
            outcome = f"{name}: no file is named: {said}"
        elif any(not c.isprintable() and c != "\n" for c in said):
            outcome = f"{name}: control characters: {said!r}"
    except BaseException as error:
        outcome = f"{name}: {type(error).__name__}: {error!s:.300}"
    if (took := time.process_time() - began) > 15:
        outcome = f"{name}: took {took:.0f} s of a processor"
    shutil.rmtree(work)
    return outcome


def main(root: str, work: str, seed: str, count: str) -> None:
    """Tries them; memory is that of this process."""
    found: dict[str, Any] = {"told": 0, "loaded": 0, "wrong": []}
    before = peak_mb()
    for case in cases(pathlib.Path(root), int(seed), int(count)):
        outcome = attempt(case, pathlib.Path(work) / "case")
        if outcome in found:
            found[outcome] += 1
        else:
            found["wrong"].append(outcome)
    found["mb"] = peak_mb()
    found["mb_before"] = before
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
