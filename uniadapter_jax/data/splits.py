"""The splits of a run: train, validation and test, from the records that its config names."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.prepared import splits_of
from uniadapter_jax.data.records import Records, carve_validation, open_records

FIELDS = ("train_split", "val_split", "test_split")  # of config.data


@dataclasses.dataclass
class Splits:
    """`train` is None where nothing trains, `val` where the config names and carves none.

    `unused` are the splits of the records that the run does not read.
    """

    train: Records | None
    val: Records | None
    test: Records
    unused: tuple[str, ...] = ()

    def named(self) -> dict[str, Records]:
        """{name: records} of those of "train", "val" and "test" that exist."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: records for name, records in every.items() if records is not None}


def open_splits(config: ConfigDict, *, trains: bool) -> Splits:
    """Opens the splits that the config names; `train` is None unless `trains`.

    Raises:
      UserError: no such records or split; the message names the config's field.
    """
    if not config.data.records:
        raise UserError("config.data.records is empty: the directory that prepare wrote")
    test, train = (_open_split(config, name) for name in ("test_split", "train_split"))
    val = None
    if config.data.val_split:
        _check_apart(config)
        val = _open_split(config, "val_split")
    elif config.data.val:
        train, val = carve_validation(train, config.data.val)
    used = {name for field in FIELDS for name in _names(config, field)}
    unused = tuple(name for name in splits_of(config.data.records) if name not in used)
    return Splits(train if trains else None, val, test, unused)


def _names(config: ConfigDict, field: str) -> list[str]:
    return [name.strip() for name in config.data[field].split(",") if name.strip()]


def _check_apart(config: ConfigDict) -> None:
    """Raises `UserError` if validation is trained on, or tested."""
    for name in _names(config, "val_split"):
        for other in ("train_split", "test_split"):
            if name in _names(config, other):
                raise UserError(
                    f"config.data.val_split={config.data.val_split!r}: {name!r} is in "
                    f"config.data.{other}, too; name a split of its own, or carve one with "
                    "config.data.val"
                )


def _open_split(config: ConfigDict, name: str) -> Records:
    try:
        return open_records(config.data.records, config.data[name])
    except UserError as error:
        raise UserError(f"config.data.{name}={config.data[name]!r}: {error}") from error
