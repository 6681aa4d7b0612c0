"""Adapted models as models of MTEB, a benchmark of embeddings (the extra `mteb`).

    encoder = Encoder(uniadapter_jax.load_model("backbone/", "adapter/"))
    mteb.evaluate(encoder, mteb.get_task("DiDeMoT2VRetrieval"))

MTEB would decode videos and pictures by its own rules. Here their bytes are taken undecoded out of
its data sets, and go the way that the clips of training went. MTEB and torch are imported only
when a model is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uniadapter_jax.adapters.partition import count
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Float
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.inference.adapted import AdaptedBackbone
from uniadapter_jax.inference.clip_files import read_range, told
from uniadapter_jax.inference.search.description import of_rows

MODALITIES = ("text", "image", "video")
_BATCH = 32  # MTEB's own default
_MOST_TEXTS = 64  # that are matched with a clip at once

Row = Mapping[str, Any]  # "path" and "bytes" of a file; one of them may be None
Rows = Float[np.ndarray, "n *f c"]


class _Model:
    """What MTEB asks of any model: its name, and a revision that tells its results apart."""

    type: str

    def __init__(self, model: AdaptedBackbone, name: str = ""):
        """`name` is "owner/name", under which MTEB keeps results; by default that of the method."""
        self.model = model
        self.name = name or f"uniadapter_jax/{model.method}"
        if "/" not in self.name:
            raise UserError(f"name={name!r}: MTEB names models owner/name")

    @property
    def mteb_model_meta(self) -> Any:
        """MTEB's `ModelMeta`, made anew each time, since options of the model may have changed."""
        try:
            from mteb.models.model_meta import ModelMeta
        except ImportError as error:
            raise UserError(
                f"MTEB cannot be imported ({error}): pip install 'uniadapter_jax[mteb]'"
            ) from error
        part = self.model.partition
        known = {
            "name": self.name,
            "revision": self._revision(),
            "modalities": list(MODALITIES),
            "model_type": [self.type],
            "framework": ["JAX"],
            "embed_dim": self.model.config.embed,
            "max_tokens": self.model.task["words"],
            "n_parameters": count(part.trainable) + count(part.frozen),
        }
        return ModelMeta.create_empty(overwrites=known)

    def _revision(self) -> str:
        """A digest of all that features depend on, so that no two adapters share kept results."""
        content = json.dumps(of_rows(self.model, None, "float32"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Encoder(_Model):
    """Texts, pictures and videos as rows, compared as the model was trained.

    A row is a unit vector, or of clips whose frames are compared (`q_score`) all of their frames.
    """

    type = "dense"

    def encode(self, inputs: Any, **options: Any) -> Rows:
        """Rows of a loader's data set, in its order; of MTEB's options only `precision` counts."""
        _check_precision(options)
        if (modality := _modality(inputs.dataset)) == "text":
            return self.model.query_rows(self.model.encode_text(_texts(inputs)))
        rows: list[np.ndarray] = []
        files, size = _Files(inputs.dataset, modality), inputs.batch_size or _BATCH
        for first in range(0, len(files), size):
            with tempfile.TemporaryDirectory() as folder:
                numbers = range(first, min(first + size, len(files)))
                paths = [_path(files[i], folder, i) for i in numbers]
                rows += self.model.clip_rows(*self.model.encode_files(paths))
        return _stacked(rows) if self.model.keeps_frames else np.concatenate(rows)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of all rows of one side with all of the other, as a tensor."""
        import torch

        return torch.from_numpy(np.array(self._compared(*map(_array, (embeddings1, embeddings2)))))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of row i of one side with row i of the other, as a tensor."""
        import torch

        pairs = zip(_array(embeddings1), _array(embeddings2), strict=True)
        scores = [self._compared(a[None], b[None])[0, 0] for a, b in pairs]
        return torch.from_numpy(np.array(scores, np.float32))

    def _compared(self, a: Rows, b: Rows) -> Float[np.ndarray, "n m"]:
        if a.ndim == b.ndim == 2:
            return _units(a) @ _units(b).T
        if a.ndim == 2:
            return self.model.similarity(a, b, b.any(axis=2))  # type: ignore[attr-defined]
        if b.ndim == 2 or b.shape[1] == 1:
            return self._compared(b if b.ndim == 2 else b[:, 0], a).T
        if a.shape[1] == 1:  # a picture asks as a text would
            return self._compared(a[:, 0], b)
        raise UserError(
            f"similarity={self.model.task['similarity']!r} weighs a clip's frames by a text or a "
            "picture, so it compares no videos with videos; load the model with "
            "similarity='mean_pool'"
        )


class CrossEncoder(_Model):
    """A BLIP's logit of a match for pairs of a text and a clip, for MTEB's reranking tasks."""

    type = "cross-encoder"

    def __init__(self, model: AdaptedBackbone, name: str = ""):
        super().__init__(model, name)
        if not model.matches:
            raise UserError("this model has no matching head, as a BLIP for retrieval has")

    def predict(self, inputs1: Any, inputs2: Any, **options: Any) -> Float[np.ndarray, "n"]:
        """A score for each pair, whichever side is the text; clips are decoded one at a time."""
        _check_precision(options)
        sides = {_modality(inputs.dataset): inputs for inputs in (inputs1, inputs2)}
        if len(sides) != 2 or "text" not in sides:
            raise UserError(f"pairs of {' and '.join(sides)}: a text and a clip are matched")
        texts = _texts(sides.pop("text"))
        ((modality, inputs),) = sides.items()
        files = _Files(inputs.dataset, modality)
        pairs: dict[str, list[int]] = {}
        for number in range(len(files)):
            file = files[number]
            content = hashlib.sha256(file.get("bytes") or b"").hexdigest()
            pairs.setdefault(f"{content} {file.get('path')}", []).append(number)
        scores = np.empty(len(texts), np.float32)
        for numbers in pairs.values():
            with tempfile.TemporaryDirectory() as folder:
                path = _path(files[numbers[0]], folder, numbers[0])
                scores[numbers] = self._matched(path, [texts[i] for i in numbers])
        return scores

    def _matched(self, path: str, texts: Sequence[str]) -> list[float]:
        """Logits of texts with a file, by powers of two, so that few programs are compiled."""
        try:
            clip = self.model.pixels_of([read_range(path, self.model.clips, None, None)])
        except DecodeError as error:
            raise UserError(f"{path!r}: {told(error)}") from error
        distinct, found = list(dict.fromkeys(texts)), dict[str, float]()
        while distinct:
            size = min(1 << len(distinct).bit_length() - 1, _MOST_TEXTS)
            some, distinct = distinct[:size], distinct[size:]
            logits = self.model.match(clip[0], some, clip[1])  # type: ignore[attr-defined]
            found |= dict(zip(some, logits[:, 0, 1].tolist(), strict=True))
        return [found[text] for text in texts]


class _Files:
    """Files of a column of a data set, read one by one and not decoded."""

    def __init__(self, rows: Any, column: str):
        import datasets

        if hasattr(rows, "cast_column"):
            undecoded = {"image": datasets.Image, "video": datasets.Video}[column](decode=False)
            rows = rows.select_columns([column]).cast_column(column, undecoded)
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        value = self.rows[number][self.column]
        if not hasattr(value, "save"):
            return value
        png = io.BytesIO()  # some tasks make pictures, and have no files
        value.save(png, "PNG")
        return {"bytes": png.getvalue()}


def _path(row: Row, folder: str, number: int) -> str:
    """The path of a file, written into the folder if the data set holds its bytes.

    Its content, not its name, says what it is.
    """
    if (data := row.get("bytes")) is None:
        if not (path := row.get("path")) or not os.path.isfile(path):
            raise UserError(f"row {number} names the file {path!r}, which is not on this machine")
        return path
    path = os.path.join(folder, f"row-{number}")
    with open(path, "wb") as file:
        file.write(data)
    return path


def _modality(rows: Any) -> str:
    """What the rows of a data set are; sound beside a video is left out."""
    found = [name for name in MODALITIES if name in rows.features]
    if len(found) != 1:
        raise UserError(
            f"rows of {' and '.join(found) or 'none of ' + ', '.join(MODALITIES)}: the model "
            "encodes a text, a picture or a video at a time; choose a task of such"
        )
    return found[0]


def _texts(inputs: Iterable[Mapping[str, Any]]) -> list[str]:
    return [text for batch in inputs for text in batch["text"]]


def _check_precision(options: Mapping[str, Any]) -> None:
    if (precision := options.get("precision") or "float32") != "float32":
        raise UserError(f"precision={precision!r}: rows are float32; leave it out")


def _array(rows: Any) -> Rows:
    return np.asarray(rows, np.float32)


def _units(rows: Rows) -> Rows:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _stacked(clips: Sequence[np.ndarray]) -> Float[np.ndarray, "m f c"]:
    """Clips of as many frames as the longest has; zeros stand for frames that are not there."""
    frames = np.zeros((len(clips), max(map(len, clips)), clips[0].shape[1]), np.float32)
    for row, clip in zip(frames, clips, strict=True):
        row[: len(clip)] = clip
    return frames
