"""Which files of a hub's repository each reader needs: never more, and pickles only to convert."""

from __future__ import annotations

from uniadapter_jax.common.digests import DIGESTS_FILE
from uniadapter_jax.common.files import read_json
from uniadapter_jax.weights.families import FAMILIES, Family, family_of
from uniadapter_jax.weights.hub.need import Lacking, Listing, Need
from uniadapter_jax.weights.layout import (
    ADAPTER_CONFIG,
    ADAPTER_TENSORS,
    CONFIG_BYTES,
    CONFIG_FILE,
    FINGERPRINT_FILE,
    OPEN_CLIP_CONFIG,
    PIXELS_CONFIG,
    WEIGHT_FILE,
    WEIGHT_FILES,
    read_config,
)
from uniadapter_jax.weights.safetensors_file import shard_names

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def _config(listing: Listing) -> list[str]:
    if CONFIG_FILE not in listing.there:
        if ADAPTER_CONFIG in listing.there:
            raise Lacking(f"is an adapter ({ADAPTER_CONFIG}), and a backbone is meant")
        raise Lacking(
            f"has no {CONFIG_FILE}, so it is no backbone in transformers' layout"
            + _to_convert(listing)
        )
    return [CONFIG_FILE]


def _family(listing: Listing) -> Family:
    _config(listing)
    return family_of(read_config(listing.read(CONFIG_FILE)))


def _tokenizer(listing: Listing) -> list[str]:
    files = _family(listing).tokenizer_files
    return [CONFIG_FILE, *listing.has(files), *_listed(listing)]


def _backbone(listing: Listing) -> list[str]:
    files = _tokenizer(listing)
    for weights in (WEIGHT_FILE, f"{WEIGHT_FILE}.index.json"):
        if weights in listing.there:
            return [*files, *listing.has([FINGERPRINT_FILE]), *_with_shards(listing, weights)]
    raise Lacking(f"has no {WEIGHT_FILE}{_to_convert(listing)}")


def _source(listing: Listing) -> list[str]:
    found = listing.has(WEIGHT_FILES)
    if not found:
        raise Lacking(
            f"holds none of {', '.join(WEIGHT_FILES)}; if its weights have another name, download "
            "that file and pass its path"
        )
    beside = {CONFIG_FILE, PIXELS_CONFIG, OPEN_CLIP_CONFIG, FINGERPRINT_FILE}
    for family in FAMILIES.values():
        beside |= {*family.tokenizer_files}
    return [*_with_shards(listing, found[0]), *listing.has(sorted(beside)), *_listed(listing)]


def _adapter(listing: Listing) -> list[str]:
    if ADAPTER_CONFIG not in listing.there:
        raise Lacking(f"has no {ADAPTER_CONFIG}, so it is no adapter of this package")
    tokenizers = {name for family in FAMILIES.values() for name in family.tokenizer_files}
    tensors = listing.has([ADAPTER_TENSORS])
    return [ADAPTER_CONFIG, *tensors, *listing.has(sorted(tokenizers)), *_listed(listing)]


def _with_shards(listing: Listing, weights: str) -> list[str]:
    if not weights.endswith(".index.json"):
        return [weights]
    shards = shard_names(listing.read(weights))
    if missing := [name for name in shards if name not in listing.there]:
        raise Lacking(f"lacks {', '.join(missing)}, which its {weights} names")
    return [weights, *shards]


def _listed(listing: Listing) -> list[str]:
    """`digests.json` and the files that it lists: loading looks at all of them."""
    if DIGESTS_FILE not in listing.there:
        return []
    listed = read_json(listing.read(DIGESTS_FILE), limit=CONFIG_BYTES)
    return [DIGESTS_FILE, *listing.has(list(listed))]


def _to_convert(listing: Listing) -> str:
    """What to do about weights in other formats than safetensors."""
    others = sorted(name for name in listing.there if name.endswith(_PICKLES))
    others += [name for name in WEIGHT_FILES if name in listing.there and name not in others]
    if not others:
        return ""
    return (
        f", only {', '.join(others[:3])}. Convert it once, which executes nothing of a pickle, and "
        f"pass the directory: python -m uniadapter_jax.convert {listing.name} DEST"
    )


def tokenizer_of(family: Family) -> Need:
    """The files of a tokenizer that a family reads, of a repository with or without weights."""

    def choose(listing: Listing) -> list[str]:
        found = listing.has(family.tokenizer_files)
        if not found:
            names = ", ".join(family.tokenizer_files)
            raise Lacking(f"has no tokenizer of a {family.title}: it holds none of {names}")
        return [*found, *_listed(listing)]

    return Need(f"{family.title}-tokenizer", choose, within=("tokenizer", "backbone"))


CONFIG = Need("config", _config, within=("tokenizer", "backbone"))
TOKENIZER = Need("tokenizer", _tokenizer, within=("backbone",))
BACKBONE = Need("backbone", _backbone)
SOURCE = Need("source", _source)
ADAPTER = Need("adapter", _adapter)
