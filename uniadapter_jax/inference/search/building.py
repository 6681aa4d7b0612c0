"""Makes an index of a folder, or brings one up to date.

Files are taken in the order of their paths and written part by part. A run that is killed loses the
part that it has not written; the same command goes on with the same files in the same parts, so the
index comes out as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import write_json
from uniadapter_jax.common.shares import Share
from uniadapter_jax.inference.adapted import AdaptedBackbone
from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.search import crashes, shares
from uniadapter_jax.inference.search import description as described
from uniadapter_jax.inference.search import parts as stored
from uniadapter_jax.inference.search.description import Description
from uniadapter_jax.inference.search.folder import Changes, Reader, changes, media_of
from uniadapter_jax.inference.search.known import Known
from uniadapter_jax.inference.search.parts import Store, Table
from uniadapter_jax.inference.search.writing import write_changes
from uniadapter_jax.runs.workdir import LOCK

REPORT = "report.json"
MOST_PARTS = 64  # that are searched one by one, before they are gathered
DEAD_SHARE = 0.25  # of rows, before the rest is gathered
ADVICE = "Pass what it was made with, or name another --output"


class Team(NamedTuple):
    """The processes that index together: which of them this is, and how they wait for each other.

    Attributes:
      meet: returns once every process has called it.
    """

    share: Share
    meet: Callable[[], object]


ALONE = Team(Share(0, 1), lambda: None)


def build(
    root: str,
    output: str | os.PathLike[str],
    model: AdaptedBackbone,
    *,
    places: tuple[str, str] = ("", ""),
    windows: Windows | None = None,
    dtype: str = "float32",
    threads: int = 1,
    say: Callable[[str], None] = lambda line: None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Writes the index `output` of the folder `root`; returns the content of its report.json.

    Its caller, or that of the first process of a team, holds the lock of `output`. The other
    processes only encode, and return {}.

    Args:
      places: of backbone and adapter, to be loaded by a search.
      say: is told what is done, in lines for people.

    Raises:
      UserError: the folder holds no media, or `output` is something else, or an index that was
        made otherwise. Nothing is changed then.
    """
    index = pathlib.Path(output)
    if team.share.index:
        team.meet()  # the first process has prepared all
        description = described.read_description(index)
        description.check(index, described.of_rows(model, windows, dtype), ADVICE)
        table = Store(index, description.generation).read(description.width)
        _encode_share(index, root, model, windows, threads, description, table, team, say)
        return {}
    media_of(root)
    description = _described(index, os.path.abspath(root), model, places, windows, dtype)
    store = _settled(index, description)
    table = store.read(description.width)
    width, dtype = description.width, description.made["dtype"]
    if shares.left(index):
        shares.merge(index, store, table, width, dtype, ())
        table = store.read(width)
    todo = changes(root, table.files)
    say(_told(todo, table))
    if team.share.count > 1:
        shares.announce(index, todo.fresh)
        team.meet()
        _encode_share(index, root, model, windows, threads, description, table, team, say)
        shares.merge(index, store, table, width, dtype, todo.gone)
        table = store.read(width)
    elif todo.fresh or todo.gone:
        reader = Reader(root, model.clips, windows, threads, crashes.Reading(index))
        write_changes(store, model, dtype, reader, todo, Known(table), say)
        table = store.read(width)
    if len(table.parts) > MOST_PARTS or _dead_share(table) > DEAD_SHARE:
        table = _gathered(index, description, store, table)
    report = _report(table)
    write_json(index / REPORT, report)
    crashes.forget_suspects(index)  # of a run that was killed when all was stored, too
    return report


def _encode_share(
    index: pathlib.Path,
    root: str,
    model: AdaptedBackbone,
    windows: Windows | None,
    threads: int,
    description: Description,
    table: Table,
    team: Team,
    say: Callable[[str], None],
) -> None:
    """Encodes this process' share, and waits until all processes have done theirs."""
    reading = shares.reading(index, team.share)
    reader = Reader(root, model.clips, windows, threads, reading)
    dtype = description.made["dtype"]
    shares.write_share(index, team.share, reader, model, dtype, Known(table), say)
    team.meet()


def _described(
    index: pathlib.Path,
    root: str,
    model: AdaptedBackbone,
    given: tuple[str, str],
    windows: Windows | None,
    dtype: str,
) -> Description:
    """The description of an index, which is written unless it is there and fits."""
    made = described.of_rows(model, windows, dtype)
    backbone, adapter = map(described.absolute, given)
    new = Description(root, backbone, adapter, made, model.config.embed, model.keeps_frames)
    if not (index / described.NAME).exists():
        ours = (LOCK, f".{described.NAME}.tmp")  # the second of a run that was killed at once
        if index.exists() and any(name not in ours for name in os.listdir(index)):
            raise UserError(f"--output={index} exists and is no index; name another")
        new.write(index)
        return new
    old = described.read_description(index)
    old.check(index, made, ADVICE, given)
    if old.root != root and os.path.isdir(old.root):
        raise UserError(
            f"{index} is of the folder {old.root}, which is there, not of --input={root}; name "
            "another --output"
        )
    places = backbone or old.backbone, adapter or old.adapter
    now = dataclasses.replace(old, root=root, backbone=places[0], adapter=places[1])
    if now != old:  # something has moved
        now.write(index)
    return now


def unfinished(index: pathlib.Path) -> bool:
    """Whether a command that makes the index, or updates it, is at work or was killed."""
    crashed = crashes.left(index) or shares.left(index)
    return crashed or not (index / REPORT).exists()


def _settled(index: pathlib.Path, description: Description) -> Store:
    """The parts that count; those of a generation that was never finished, or left, are removed."""
    store = Store(index, description.generation)
    for folder in index.glob("parts-*"):
        if folder != store.folder:
            shutil.rmtree(folder)
    return store


def _gathered(index: pathlib.Path, description: Description, store: Store, table: Table) -> Table:
    """The same table in few parts without dead rows, as the generation that counts."""
    new = Store(index, description.generation + 1)
    stored.gather(store, new, table)
    dataclasses.replace(description, generation=description.generation + 1).write(index)
    shutil.rmtree(store.folder)
    return new.read(description.width)


def _dead_share(table: Table) -> float:
    return table.dead / max(1, sum(len(part.rows) for part in table.parts))


def _told(todo: Changes, table: Table) -> str:
    kept = len(table.files) - len(todo.gone) - sum(path in table.files for path in todo.fresh)
    line = f"{len(todo.fresh)} files to read, {kept} are indexed already"
    return line + (f", {len(todo.gone)} are gone" if todo.gone else "")


def _report(table: Table) -> dict[str, Any]:
    bad = [table.bad[path]._asdict() for path in sorted(table.bad)]
    clips = sum(len(part.clips) for part in table.parts)
    return {"files": len(table.files) - len(bad), "clips": clips, "bad_files": len(bad), "bad": bad}
