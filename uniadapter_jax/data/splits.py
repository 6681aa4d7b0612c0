"""The splits of a run: train, validation and test, from the records that its config names."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.records import Records, carve_validation, open_records


@dataclasses.dataclass
class Splits:
    """`train` is None where nothing trains, `val` unless `config.data.val` carves one."""

    train: Records | None
    val: Records | None
    test: Records

    def named(self) -> dict[str, Records]:
        """{"train", "val", "test"}: those that there are."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: records for name, records in every.items() if records is not None}


def open_splits(config: ConfigDict, *, trains: bool) -> Splits:
    """The splits that the config names, `train` if something trains.

    Raises:
      UserError: no such records or split; the config's field is named.
    """
    if not config.data.records:
        raise UserError("config.data.records is empty: the directory that prepare wrote")
    test, train = (_open_split(config, name) for name in ("test_split", "train_split"))
    val = None
    if config.data.val:
        train, val = carve_validation(train, config.data.val)
    return Splits(train if trains else None, val, test)


def _open_split(config: ConfigDict, name: str) -> Records:
    try:
        return open_records(config.data.records, config.data[name])
    except UserError as error:
        raise UserError(f"config.data.{name}={config.data[name]!r}: {error}") from error
