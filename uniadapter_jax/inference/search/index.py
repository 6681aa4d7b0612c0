"""A finished index, to be searched."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.inference import arguments
from uniadapter_jax.inference.adapted import AdaptedBackbone
from uniadapter_jax.inference.clip_files import FileClip, read_range, told
from uniadapter_jax.inference.load import load_model
from uniadapter_jax.inference.search import building, ranking
from uniadapter_jax.inference.search.approximate import Approximate, make
from uniadapter_jax.inference.search.description import Description, of_model, read_description
from uniadapter_jax.inference.search.parts import Clip, Stamp, Store, Table, clips_of

CANNOT_ASK = "ask needs a BLIP with a decoder of answers; leave it out"


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip of an index.

    Attributes:
      id: names it in addresses.
      path: where its file is.
      name: the path below the indexed folder.
      start, end: seconds of the file; None of a picture.
      whole: whether it is all of its file.
    """

    id: str
    path: str
    name: str
    start: float | None
    end: float | None
    whole: bool


@dataclasses.dataclass(frozen=True)
class Hit(Item):
    """A clip that was found.

    Attributes:
      score: cosine of the first stage or, matched again, the logit of a match.
      cosine: of the first stage.
      reason: why its file could not be matched or asked, if so.
      answer: of `ask`.
    """

    score: float
    cosine: float
    reason: str = ""
    answer: str = ""


class Index:
    """A folder's clips, searched by text, by a picture or by a vector.

    Attributes:
      path: directory of the index.
      description: what made it.
      root: the folder that was indexed.
      unfinished: whether `index` was at work, or had been killed, when it was opened.
    """

    def __init__(self, path: pathlib.Path, description: Description, table: Table):
        self.path, self.description = path, description
        self.root, self.unfinished = description.root, False
        self._table = table
        self._blocks = [ranking.Block.of(part) for part in table.parts]
        self._places = (description.backbone, description.adapter)
        self._model: AdaptedBackbone | None = None
        self._approximate: Approximate | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: str | os.PathLike[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        model: AdaptedBackbone | None = None,
        approximate: bool = False,
    ) -> Index:
        """An index that `python -m uniadapter_jax.index` made.

        Args:
          backbone: of the index, if it has moved; loaded at the first query.
          adapter: likewise.
          model: both, loaded.
          approximate: search what `--approximate` made: a small share of all clips.

        Raises:
          UserError: it is no index, damaged, or of another model; both sides are named.
        """
        description, unfinished = read_description(path), building.unfinished(pathlib.Path(path))
        store = Store(pathlib.Path(path), description.generation)
        index = cls(pathlib.Path(path), description, store.read(description.width))
        index.unfinished = unfinished
        if backbone is not None:
            index._places = os.fspath(backbone), index._places[1]
        if adapter is not None:
            index._places = index._places[0], os.fspath(adapter)
        if model is not None:
            index._use(model)
        if approximate:
            index._approximate = Approximate.open(index.path, index.state, index._blocks)
        return index

    @property
    def state(self) -> tuple[int, int, int]:
        """What tells these parts from those that a later run of `index` leaves."""
        numbers = Store(self.path, self.description.generation).numbers()
        return self.description.generation, max(numbers, default=-1), len(self)

    def make_approximate(self, say: Callable[[str], None] = lambda line: None) -> float | None:
        """Makes the approximate index; returns its recall, None where it does not pay.

        Raises:
          UserError: faiss is missing, or clips are compared frame by frame.
        """
        if self.description.keeps_frames:
            raise UserError(
                "--approximate: this model compares clips frame by frame, which only the exact "
                "search does; leave it out"
            )
        return make(self.path, self.state, self._blocks, say)

    def recall(self, texts: Sequence[str], k: int = 10) -> float:
        """The share of the exact `k` best clips that the approximate search finds for texts."""
        if self._approximate is None:
            raise UserError("open the index with approximate=True")
        shares = []
        for text in texts:
            row = self.query(text)
            exact = {found.clip.id for found in ranking.best(self._blocks, row, k, None)}
            near = {found.clip.id for found in self._approximate.best(row, k)}
            shares.append(len(exact & near) / max(1, len(exact)))
        return float(np.mean(shares))

    def __len__(self) -> int:
        return sum(len(part.clips) for part in self._table.parts)

    @property
    def model(self) -> AdaptedBackbone:
        """The model that made it; loaded when it is first asked for."""
        if self._model is None:
            for name, place in zip(("backbone", "adapter"), self._places, strict=True):
                if os.path.isabs(place) and not os.path.exists(place):
                    raise UserError(
                        f"the {name} of {self.path} was in {place}, which does not exist; if it "
                        f"has moved, pass --{name}=DIR"
                    )
            backbone, adapter = self._places
            merge = self.description.made.get("clips.merge")
            self._use(load_model(backbone, adapter or None, merge=merge))
        assert self._model is not None
        return self._model

    def _use(self, model: AdaptedBackbone) -> None:
        made, wanted = self.description.made, of_model(model)
        there = {name: made[name] for name in made if name in wanted or name.startswith("task.")}
        this = dataclasses.replace(self.description, made=there)
        advice = "pass --backbone and --adapter of the index, or index the folder again"
        this.check(self.path, wanted, advice, self._places)
        self._model = model

    @functools.cached_property
    def _by_id(self) -> dict[str, Clip]:
        return {clip.id: clip for clip in clips_of(self._table.parts)}

    def item(self, id: str) -> Item:
        """The clip of that id; raises `UserError` for another."""
        if id not in self._by_id:
            raise UserError(f"{self.path} has no clip of the id {id!r:.40}")
        return self._item(self._by_id[id])

    def stamp(self, item: Item) -> Stamp:
        """What tells whether the file of a clip is as it was when it was indexed."""
        return self._table.files[item.name]

    def files(self) -> int:
        """How many files have clips."""
        return len(self._table.files) - len(self._table.bad)

    def items(self) -> list[Item]:
        """All clips, in the order of the table."""
        return [self._item(clip) for clip in clips_of(self._table.parts)]

    def _item(self, clip: Clip) -> Item:
        path = os.path.join(self.root, clip.path)
        return Item(clip.id, path, clip.path, clip.start, clip.end, clip.whole)

    def search(
        self,
        text: str | None = None,
        *,
        image: str | os.PathLike[str] | None = None,
        vector: np.ndarray | None = None,
        k: int = 10,
        rerank: int = 0,
        ask: str = "",
    ) -> list[Hit]:
        """The `k` best clips for a text, a picture's file, or a row as `query` gives it.

        Args:
          rerank: so many of the best are matched again with the text, by a BLIP, from their files.
          ask: a question about each hit, answered by a BLIP with a decoder.

        Raises:
          UserError: not one query, or an empty one; k below 1; the model cannot match or answer.
        """
        k, rerank = arguments.whole(k, "k", 1), arguments.whole(rerank, "rerank", 0)
        if rerank and not (text and self.model.matches):
            raise UserError(
                f"rerank={rerank} needs a text and a BLIP with a matching head; leave it out"
            )
        if 0 < rerank < k:
            raise UserError(f"rerank={rerank} is less than k={k}: match at least as many again")
        if ask and not self.model.answers:
            raise UserError(CANNOT_ASK)
        row = self.query(text, image) if vector is None else self._row(vector)
        if vector is not None and (text is not None or image is not None):
            raise UserError("give one: a text, a picture or a vector")
        found = self._found(row, max(k, rerank))
        hits = [Hit(**vars(self._item(clip)), score=score, cosine=score) for clip, score in found]
        if rerank:
            assert text is not None
            hits = self._matched(hits, text)
        return self._asked(hits[:k], ask) if ask else hits[:k]

    def _found(self, row: np.ndarray, k: int) -> list[ranking.Found]:
        """The best clips of the first stage."""
        if self._approximate is not None:
            return self._approximate.best(row, k)
        compare = self._by_frames if self.description.keeps_frames else None
        return ranking.best(self._blocks, row, k, compare)

    def query(
        self, text: str | None = None, image: str | os.PathLike[str] | None = None
    ) -> np.ndarray:
        """The row of a text, or of a picture's file, which clips' rows are compared with."""
        if (text is None) == (image is None):
            raise UserError("give one: a text, or --image=FILE with a picture")
        if text is not None:
            if not isinstance(text, str) or not text.strip():
                raise UserError("the query is empty: say in words what to look for")
            return self.model.query_rows(self.model.encode_text([text]))[0]
        picture = self.model.pixels_of([self._picture(os.fspath(image or ""))])
        features = self.model.media_features(*picture)[0]
        return self.model.query_rows(features.reshape(1, -1))[0]

    def cut(self, text: str) -> str:
        """What of a long text the model does not read, for people; "" of one that it reads."""
        words = self.model.task["words"]
        count = int(self.model.tokenizer.lengths([text])[0])
        if count <= words:
            return ""
        return f"the query has {count:,} tokens, of which the model reads the first {words} only"

    def _picture(self, path: str) -> FileClip:
        """A picture's file; of a video its first frame."""
        try:
            clip = read_range(path, self.model.clips, None, None)
        except DecodeError as error:
            raise UserError(f"--image={path}: {told(error)}") from error
        return FileClip(clip.frames[:1])

    def _row(self, vector: np.ndarray) -> np.ndarray:
        return arguments.floats(vector, "vector", "c", (self.description.width,))

    def _by_frames(self, query: np.ndarray, frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.model.similarity(query[None], frames, mask)[0]  # type: ignore[attr-defined]

    def _pixels(self, hit: Hit) -> tuple[np.ndarray, np.ndarray] | str:
        """Frames of a hit and their mask, decoded again; or why there are none."""
        times = (None, None) if hit.whole else (hit.start, hit.end)
        try:
            clip = read_range(hit.path, self.model.clips, *times)
        except DecodeError as error:
            return told(error)
        return self.model.pixels_of([clip])

    def _matched(self, hits: Sequence[Hit], text: str) -> list[Hit]:
        """The hits by how well they match; those whose files are gone come last."""
        matched = []
        for hit in hits:
            pixels = self._pixels(hit)
            if isinstance(pixels, str):
                matched.append(replace(hit, score=float("-inf"), reason=pixels))
                continue
            frames, mask = pixels
            logits = self.model.match(frames, [text], mask)  # type: ignore[attr-defined]
            matched.append(replace(hit, score=float(logits[0, 0, 1])))
        return sorted(matched, key=lambda hit: -hit.score)  # stable: ties by the first stage

    def _asked(self, hits: Sequence[Hit], question: str) -> list[Hit]:
        answered = []
        for hit in hits:
            try:
                answered.append(replace(hit, answer=self.ask(hit, question)))
            except DecodeError as error:
                answered.append(replace(hit, reason=told(error)))
        return answered

    def ask(self, item: Item, question: str, path: str | None = None) -> str:
        """The answer to a question about a clip; `path` is where its file is open, if it is.

        Raises:
          DecodeError: the file is gone or damaged.
          UserError: the model cannot answer.
        """
        if not self.model.answers:
            raise UserError(CANNOT_ASK)
        times = (None, None) if item.whole else (item.start, item.end)
        clip = read_range(path or item.path, self.model.clips, *times)
        frames, mask = self.model.pixels_of([clip])
        best = self.model.answer(frames, [question], mask=mask)  # type: ignore[attr-defined]
        return best[0][0][0] if best[0] else ""
