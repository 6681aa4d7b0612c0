"""The library's front door: a backbone, adapted or not, as functions from pixels and strings.

model = uniadapter_jax.load_model("backbone/", "adapter/")
frames = model.encode_frames(pixels)                # uint8 [N, H, W, 3]
text = model.encode_text(["a cat jumps on a chair"])
cosines = model.similarity(text, frames.reshape(clips, -1, frames.shape[-1]))
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import Partition, flat_names, partition
from uniadapter_jax.adapters.registry import Method, get_method
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.common.distinct import distinct_rows
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.common.types import Array, Bool, Float, Int, PyTree, Shaped
from uniadapter_jax.config import base_config
from uniadapter_jax.data import images
from uniadapter_jax.data.loading.frames import RESIZES
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.inference import arguments
from uniadapter_jax.inference.blip_model import AdaptedBLIP
from uniadapter_jax.inference.options import Options
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval import scoring
from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES
from uniadapter_jax.weights.adapter_directory import AdapterFiles, check_tensors, read_adapter
from uniadapter_jax.weights.directory import Backbone, load_backbone
from uniadapter_jax.weights.errors import printable
from uniadapter_jax.weights.families import check_tokenizer, family_of

DTYPES = ("float32", "bfloat16")
_TASK = ("similarity", "temperature")
_AS_IS = {"preprocess": "none", "max_words": 0}  # tokenizers clean texts as the family does


def load_model(
    backbone: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    similarity: str | None = None,
    dtype: str = "float32",
    batch_size: int = 64,
    seed: int = 0,
) -> AdaptedModel | AdaptedBLIP:
    """A model for inference, of the family that the backbone's config names.

    Args:
      backbone: a directory in HuggingFace's layout, or `random:<config.json>` with `seed`.
      adapter: a directory that `export` (or `convert`) wrote; None is the backbone alone.
      tokenizer: a directory of tokenizer files; by default the adapter's, else the backbone's.
        Without any, ids work and strings raise.
      similarity: of CLIP, q_score, mean_pool or mean_pool_unit; by default what the adapter was
        trained with.
      dtype: of frozen weights and activations, float32 or bfloat16.
      batch_size: frames or texts that are encoded at once.

    Raises:
      UserError: files are missing or damaged; the adapter belongs to another backbone, another
        tokenizer or another version of its method, or its tensors are not exactly the method's.
        Both sides are said.
    """
    for name, path in (("backbone", backbone), ("adapter", adapter), ("tokenizer", tokenizer)):
        optional = name != "backbone" and path is None
        if not optional and (not isinstance(path, str | os.PathLike) or not os.fspath(path)):
            raise UserError(f"{name}={path!r}: a path is meant")
    arguments.whole(batch_size, "batch_size", 1)
    arguments.whole(seed, "seed", 0)
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    base = load_backbone(os.fspath(backbone), seed=seed, dtype=dtype)
    found = None if adapter is None else read_adapter(pathlib.Path(adapter))
    if found is None:
        part = partition(base.model, None, dtype)
    else:
        part = put_adapter(base, found, dtype, adapter)
    task = _task(found, similarity)
    if (is_blip := isinstance(base.model, BLIP)) and similarity is not None:
        raise UserError(
            f"similarity={similarity!r} is CLIP's; BLIP compares by cosine, then matches"
        )
    return (AdaptedBLIP if is_blip else AdaptedModel)(
        part,
        base.model.config,
        _tokenizer(base, adapter, tokenizer, found.tokenizer if found else ""),
        method=found.method if found else "zero_shot",
        fingerprint=base.fingerprint,
        task=task,
        batch_size=batch_size,
    )


def put_adapter(
    base: Backbone, adapter: AdapterFiles, dtype: str = "float32", where: object = "the adapter"
) -> Partition:
    """Puts an adapter, which `where` holds, into a backbone; strict, see `load_model`."""
    if adapter.fingerprint != base.fingerprint:
        raise UserError(
            f"{where} was trained on another backbone: it names the fingerprint "
            f"{printable(adapter.fingerprint)} ({printable(adapter.backbone) or 'no path'}), "
            f"{base.source} has "
            f"{base.fingerprint}"
        )
    method = get_method(adapter.method)
    try:  # shapes first: options that ask for more than there is allocate nothing
        expected = trainable_shapes(base, method, adapter.options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    check_tensors(where, adapter.tensors, flat_names(expected))
    options = ConfigDict(dict(adapter.options))
    method.attach(base.model, options, generator(0, "adapters"))
    part = partition(base.model, method.filter(options), dtype)
    part.trainable = jax.tree.map_with_path(
        lambda path, _: jnp.asarray(adapter.tensors[".".join(entry.key for entry in path)]),
        part.trainable,
    )
    return part


def trainable_shapes(base: Backbone, method: Method, options: Mapping[str, Any]) -> PyTree:
    """Shapes of what the method trains in such a backbone; raises `UserError` for bad options."""

    def attached() -> Any:
        model, chosen = type(base.model)(base.model.config, rng=None), ConfigDict(dict(options))
        method.attach(model, chosen, None)
        return partition(model, method.filter(chosen)).trainable

    return nnx.eval_shape(attached)


def _task(found: AdapterFiles | None, similarity: str | None) -> dict[str, Any]:
    task = dict(found.task) if found else {}
    if similarity is not None:
        if similarity not in SIMILARITIES:
            raise UserError(f"similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")
        task["similarity"] = similarity
    return task


def _tokenizer(base: Backbone, adapter: Any, given: Any, expected: str) -> Tokenizer:
    own = base.source.removeprefix("random:")
    family = family_of(base.model.config)
    files = family.tokenizer_files
    if given and not _has_any(given, files):
        raise UserError(f"tokenizer={os.fspath(given)!r} holds none of {', '.join(files)}")
    directory = given or next((d for d in (adapter, own) if d and _has_any(d, files)), own)
    tokenizer = family.load_tokenizer(directory)
    if expected and tokenizer.fingerprint and tokenizer.fingerprint != expected:
        raise UserError(
            f"the tokenizer in {directory} has the fingerprint {tokenizer.fingerprint}, the "
            f"adapter was trained with {expected}; pass tokenizer=DIR with that one"
        )
    if tokenizer.vocab_size:
        where = f"the tokenizer in {directory}"
        check_tokenizer(tokenizer, base.model.config, where, base.source)
    return tokenizer


def _has_any(directory: str | os.PathLike[str], files: Sequence[str]) -> bool:
    return any((pathlib.Path(directory) / name).is_file() for name in files)


class AdaptedModel:
    """A backbone and the adapter in it, compiled and batched.

    A batch that is not full is padded to the next power of two, so that few programs are compiled.

    Attributes:
      partition: the arrays, apart as trainable and frozen.
      config: the backbone's.
      method: name of the method, `zero_shot` without an adapter.
      fingerprint: the backbone's.
      task: similarity, temperature and words (tokens of a text), as the adapter was trained. What
        is set counts from the next call on.
    """

    def __init__(
        self,
        part: Partition,
        config: CLIPConfig,
        tokenizer: Tokenizer,
        *,
        method: str,
        fingerprint: str,
        task: Mapping[str, Any],
        batch_size: int,
    ):
        defaults = base_config().task
        self.partition = part
        self.config = config
        self.tokenizer = tokenizer
        self.method = method
        self.fingerprint = fingerprint
        kept = {name: defaults[name] for name in _TASK}
        usual = {**kept, "words": config.positions, **_AS_IS}
        usual["resize"] = family_of(config).resize
        kind = get_task("retrieval")
        self.task: MutableMapping[str, Any] = Options(usual, kind, task, config.positions)
        self.batch_size = arguments.whole(batch_size, "batch_size", 1)
        self._images = jax.jit(lambda t, f, x: part.merge(t, f).encode_images(x))
        self._text = jax.jit(lambda t, f, x: part.merge(t, f).encode_text(x))

    @property
    def texts(self) -> TextRule:
        """What is done to strings before they are cut into tokens."""
        return TextRule(self.task["preprocess"], self.task["max_words"])

    def encode_frames(self, pixels: Shaped[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N c"]:
        """Raw features (not normalised) of single frames or pictures.

        uint8 pixels of any size are preprocessed as in training: short side resized, middle cut
        out, normalised. Floats are taken as normalised already and must have the model's size.
        """
        if arguments.is_empty(pixels):
            return np.empty((0, self.config.embed), np.float32)
        side, resize = self.config.image_size, RESIZES[self.task["resize"]]
        found = arguments.pixels_of(pixels, "pixels", "N H W 3", side)
        if found.dtype != np.uint8:
            return self._batched(self._images, found, lambda part: part)
        return self._batched(self._images, found, lambda part: images.resized(part, side, resize))

    def encode_text(
        self, texts: str | Sequence[str] | Int[np.ndarray, "n l"]
    ) -> Float[np.ndarray, "n c"]:
        """Raw features (not normalised) of strings, or of rows of ids with BOS and EOS.

        Strings are cut at `task["words"]` tokens, EOS kept. Raises `UserError` without a
        tokenizer, or for ids outside the vocabulary, without EOS or, where a tokenizer says which
        it is, without BOS.
        """
        if arguments.are_strings(texts):
            strings = arguments.strings(texts, "texts")
            if not strings:
                return np.empty((0, self.config.embed), np.float32)
            ids = self.tokenizer.encode(self.texts.captions(strings), self.task["words"])
            self.config.check_ids(ids)
        else:
            ids = clip_ids(texts, "texts", self.config)
            if self.tokenizer.bos_id >= 0:
                every = np.ones(len(ids), bool)
                arguments.check_begin(ids, every, "texts", self.tokenizer.bos_id, "BOS")
        return self._batched(self._text, ids, lambda part: part.astype(np.int32))

    def similarity(
        self,
        text: Float[np.ndarray, "n c"],
        frames: Float[np.ndarray, "m f c"],
        mask: Bool[np.ndarray, "m f"] | None = None,
    ) -> Float[np.ndarray, "n m"]:
        """Cosines of texts and clips, from raw features; `mask` is False where a clip has ended.

        Features "m c" are clips of one frame, such as pictures.
        """
        text = arguments.floats(text, "text", "n c")
        frames = arguments.as_array(frames, "frames")
        frames = frames[:, None] if frames.ndim == 2 else frames
        frames = arguments.floats(frames, "frames", "m f c", (None, None, text.shape[1]))
        if not frames.shape[1]:
            raise UserError(f"frames of shape {frames.shape}: clips of no frames")
        if mask is None:
            mask = np.ones(frames.shape[:2], bool)
        mask = arguments.mask_of(mask, "mask", "m f", frames.shape[:2])
        options = {name: self.task[name] for name in _TASK}
        return scoring.score(text, frames, mask, **options)

    def _batched(
        self,
        function: Callable[[PyTree, PyTree, Any], Array],
        rows: np.ndarray,
        prepare: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        same = distinct_rows(rows)  # equal rows have equal features, to the bit
        rows = same.take(rows)
        features = np.empty((len(rows), self.config.embed), np.float32)
        for start in range(0, len(rows), self.batch_size):
            part = prepare(rows[start : start + self.batch_size])
            size = min(_power_of_two(len(part)), self.batch_size)
            padded = np.resize(part, (size, *part.shape[1:]))  # repeats rows
            found = function(self.partition.trainable, self.partition.frozen, padded)
            features[start : start + len(part)] = np.asarray(found)[: len(part)]
        return same.spread(features)


def clip_ids(value: Any, name: str, config: CLIPConfig) -> Int[np.ndarray, "n l"]:
    """Rows of ids that a CLIP reads; raises `UserError` for others."""
    ids = arguments.integers(value, name, "n l")
    if not 0 < ids.shape[1] <= config.positions:
        raise UserError(f"{name}: rows of {ids.shape[1]} ids, the model reads {config.positions}")
    try:
        config.check_ids(ids)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return ids


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
