"""Lists of clips, captions by clip, paragraphs and counts, for the sources of video sets."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.data.sources.files import VIDEO_EXTENSIONS, Fields, Tree
from uniadapter_jax.data.sources.item import Item, clean_text
from uniadapter_jax.data.sources.manifest import json_lines

Captions = Mapping[str, Sequence[str]]  # by clip, both in the order of the file

_SPLIT_WORD = re.compile(r"(?:^|[\W_])(train|val|test)(?:\d|[\W_]|$)")


def stem(name: str) -> str:
    """The name of a clip without the suffix of a video, which lists and media spell differently."""
    base, suffix = os.path.splitext(name)
    return base if suffix and suffix.lower() in VIDEO_EXTENSIONS else name


def clips(
    tree: Tree, split: str, ids: Iterable[str], captions: Captions, *, end: float | None = None
) -> list[Item]:
    """Items in the order of `ids`; a clip without a file gets the path where it should lie."""
    return list(
        tree.place_clips(
            Item(clip, clip, split, tuple(captions.get(clip, ())), end=end) for clip in ids
        )
    )


def chosen(where: str, ids: Sequence[str], captions: Captions, annotations: str) -> list[str]:
    """The ids of a list, each of which the annotations know.

    Raises:
      UserError: an id is listed twice, or has no annotation; the list and the id are named.
    """
    seen: set[str] = set()
    for clip in ids:
        if clip in seen:
            raise FileError(where, f"{clip!r} is listed twice")
        if clip not in captions:
            raise FileError(where, f"{clip!r} is listed, but {annotations} does not know it")
        seen.add(clip)
    return list(ids)


def paragraph(sentences: Iterable[str]) -> str:
    """The sentences about a clip as one text, joined by a blank; "" if there is nothing in them."""
    return " ".join(filter(None, map(clean_text, sentences)))


def counted(name: str, count: int, published: int) -> str:
    """`name` with the number of its clips beside the published one."""
    if count == published:
        return f"{name}: {count:,} clips, as published"
    return f"{name}: {count:,} clips, published are {published:,}: not that benchmark"


def disagreement(name: str, read: Captions, other: Captions, ids: Iterable[str]) -> list[str]:
    """Says, if so, that another file of captions, which was not read, has other ones for clips."""
    both = [clip for clip in ids if clip in other and clip in read]
    differ = [clip for clip in both if _cleaned(read[clip]) != _cleaned(other[clip])]
    if not differ:
        return []
    return [
        f"{name}, which was not read, has other captions for {len(differ):,} of {len(both):,} "
        f"clips, such as {differ[0]!r}"
    ]


def _cleaned(texts: Iterable[str]) -> list[str]:
    return sorted(filter(None, map(clean_text, texts)))


def read_sentence_lists(tree: Tree, path: str) -> dict[str, list[str]]:
    """{clip: sentences} of an object of lists of strings, as JSON or an inert pickle.

    A sentence may be a list of words.
    """
    where = os.path.join(tree.root, path)
    content = read_plain_pickle(where) if path.endswith(".pkl") else tree.read_json(path)
    if not isinstance(content, dict):
        raise FileError(where, f"expected an object of lists, found {type(content).__name__}")
    return {str(clip): _sentences(where, clip, value) for clip, value in content.items()}


def _sentences(where: str, clip: Any, value: Any) -> list[str]:
    sentences = []
    for entry in value if isinstance(value, list | tuple) else [None]:
        words = [entry] if isinstance(entry, str) else entry
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
            raise FileError(where, f"{clip!r}: expected a list of sentences, or of lists of words")
        sentences.append(" ".join(words))
    return sentences


class _Inert(pickle.Unpickler):
    """An unpickler that knows no class and no function: only plain containers get through."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain data")


def read_plain_pickle(path: str) -> Any:
    """What a pickle of plain containers holds; text of Python 2 is read as Latin-1.

    Raises:
      FileError: it is damaged, or names a class or a function.
    """
    try:
        with open(path, "rb") as file:
            return _Inert(file, encoding="latin1").load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise FileError(path, f"not readable as plain pickled data: {error}") from error


def sentence_records(tree: Tree) -> dict[str, tuple[str, dict[str, list[str]]]]:
    """{split: (file, {clip: sentences})} of lists with one record a clip (CLIP-ViP's).

    Such a list is any `.jsonl` file of {"clip_id", "text": [sentences]}, whose name says train, val
    or test. Two for one split are an error.
    """
    lists: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for path in tree.paths:
        word = _SPLIT_WORD.search(os.path.basename(path))
        if not path.endswith(".jsonl") or not word:
            continue
        where = os.path.join(tree.root, path)
        texts: dict[str, list[str]] = {}
        for number, record in json_lines(where):
            if not isinstance(record, dict) or "clip_id" not in record:
                break
            fields = Fields(f"{where}, line {number}")
            clip = stem(os.path.basename(fields.get(record, "clip_id", str)))
            if clip in texts:
                raise UserError(f"{fields.where}: clip {clip!r} comes twice")
            texts[clip] = _sentences(fields.where, clip, record.get("text"))
        else:
            if word[1] in lists:
                raise UserError(
                    f"--input={tree.root}: {lists[word[1]][0]} and {path} are for one split"
                )
            lists[word[1]] = (path, texts)
    return {split: value for split, value in lists.items() if value[1]}


def paragraph_records(tree: Tree) -> dict[str, tuple[str, dict[str, str]]]:
    """`sentence_records` with the sentences of a clip as one text."""
    return {
        split: (path, {clip: paragraph(sentences) for clip, sentences in texts.items()})
        for split, (path, texts) in sentence_records(tree).items()
    }


def other_paragraphs(tree: Tree, split: str, path: str, read: Mapping[str, str]) -> list[str]:
    """`disagreement` of the paragraphs of a file with those of a list of CLIP-ViP's beside it."""
    other, texts = paragraph_records(tree).get(split, (path, {}))
    if other == path:
        return []
    found = {clip: [text] for clip, text in texts.items()}
    return disagreement(
        os.path.basename(other), {clip: [text] for clip, text in read.items()}, found, read
    )


def listed_stems(tree: Tree) -> dict[str, str]:
    """{id: name of its file without suffix} as video_path.json says (DGL); {} without one."""
    if not (path := tree.find("video_path.json")):
        return {}
    listed = tree.read_json(path)
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise FileError(os.path.join(tree.root, path), "expected an object {id: path}")
    return {clip: stem(os.path.basename(name)) for clip, name in listed.items()}
