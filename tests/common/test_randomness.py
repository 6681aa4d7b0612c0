"""Random bits inside a step: what they depend on, how evenly they fall, what they cost.

`flaws` is a battery of statistical tests. Its seeds are fixed, so it gives the same answer always:
nothing for our bits and for JAX's own, something for hashes that are known to be weak.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from uniadapter_jax.common import randomness
from uniadapter_jax.common.randomness import bernoulli, fold_name, row_keys, split, stream

SIGMAS = 5.0  # of some 2,000 numbers that are looked at, by chance one in 1.7 million is beyond
RATES = (0.1, 0.5)
SHAPE = (64, 4, 16, 128)  # rows of 8,192 elements, with an inner axis as of attention's weights
LAGS = (1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 127, 128, 129, 256, 768, 4096, 4097)


def keys_of_rows(seed=3, rows=SHAPE[0]):
    return row_keys(stream(seed, "dropout"), jnp.arange(rows))


def ours(keys, p, shape):
    return bernoulli(keys, p, shape)


def jaxs(keys, p, shape):
    return jax.vmap(lambda key: jax.random.bernoulli(key, p, shape[1:]))(keys)


def correlation(a, b):
    """Of two arrays of truth values, in standard deviations of that of independent ones."""
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return np.corrcoef(a, b)[0, 1] * np.sqrt(a.size)


def surplus(counts, expected):
    """Chi-square's distance from its mean, in its standard deviations."""
    freedom = expected.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def patterns(bits, rate):
    """`surplus` of how often each pattern of 8 bits of the last axis comes."""
    numbers = np.packbits(bits, axis=-1).ravel()
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)
    expected = numbers.size * rate**ones * (1 - rate) ** (8 - ones)
    counts = np.bincount(numbers, minlength=256)
    often = expected >= 5  # the others are one class
    both = (np.append(y[often], y[~often].sum()) for y in (counts, expected))
    return surplus(*both) if (~often).any() else surplus(counts, expected)


def measures(draw, rate):
    """Yields (what, standard deviations from what independent draws give)."""
    keys = keys_of_rows()
    drops = ~np.asarray(draw(keys, 1 - rate, SHAPE)).reshape(SHAPE[0], -1)
    rows, length = drops.shape
    spread = np.sqrt(rate * (1 - rate))
    yield "mean", (drops.mean() - rate) / spread * np.sqrt(drops.size)
    for number, row in enumerate(drops):
        yield f"mean of row {number}", (row.mean() - rate) / spread * np.sqrt(length)
    sums = (drops.sum(0) - rows * rate) / (spread * np.sqrt(rows))  # a number for each place
    yield "spread of places' means", ((sums**2).mean() - 1) * np.sqrt(length / 2)
    sums = (drops.reshape(rows, -1, 128).sum(2) - 128 * rate) / (spread * np.sqrt(128))
    yield "spread of lines' means", ((sums**2).mean() - 1) * np.sqrt(sums.size / 2)
    for lag in LAGS:
        yield f"lag {lag}", correlation(drops[:, lag:], drops[:, :-lag])
        yield f"row and next, lag {lag}", correlation(drops[1:, lag:], drops[:-1, :-lag])
    for apart in (1, 2, 8, 32):
        yield f"rows {apart} apart", correlation(drops[apart:], drops[:-apart])
    triple = drops[:, 2:] ^ drops[:, 1:-1] ^ drops[:, :-2]
    odd = 3 * rate * (1 - rate) ** 2 + rate**3
    error = np.sqrt(odd * (1 - odd) * 3)  # neighbouring triples overlap: at most thrice the spread
    yield "three neighbours", (triple.mean() - odd) / error * np.sqrt(triple.size)
    yield "8 neighbours", patterns(drops, rate)
    yield "8 rows", patterns(drops.T.copy(), rate)
    yield "8 lines", patterns(drops.reshape(rows, -1, 128).swapaxes(1, 2).copy(), rate)
    # Places, layers and steps, as a model names them.
    named = [fold_name(keys, name) for name in ("attn.out", "attn.weights", "cross.out", "mlp.out")]
    layers = split(keys, 4)
    steps = [row_keys(jax.random.fold_in(stream(3, "dropout"), i), jnp.arange(64)) for i in (0, 1)]
    others = {"places": named, "layers": list(layers), "steps": steps}
    others["seeds"] = [keys_of_rows(seed) for seed in (0, 1)]
    for what, several in others.items():
        masks = [~np.asarray(draw(k, 1 - rate, SHAPE)) for k in several]
        for (i, a), (j, b) in itertools.combinations(enumerate(masks), 2):
            yield f"{what} {i} and {j}", correlation(a, b)
    masks = [~np.asarray(draw(k, 1 - rate, SHAPE)).ravel() for k in split(keys, 8)]
    yield "8 layers", patterns(np.stack(masks, -1), rate)


def flaws(draw, rates=RATES):
    """Yields ((rate, what), standard deviations) of all that is too far."""
    for rate in rates:
        for what, z in measures(draw, rate):
            if not abs(z) < SIGMAS:
                yield (rate, what), float(z)


@pytest.mark.parametrize("draw", [ours, jaxs])
def test_bits_fall_as_independent_ones(draw):
    assert dict(flaws(draw)) == {}


WEAK = {
    "the places themselves": ((), ()),
    "a product": ((31,), (0x9E3779B1,)),
    "one round": (randomness._SHIFTS[:1], randomness._FACTORS[:1]),
    "no products": (randomness._SHIFTS, (1, 1, 1)),
    "no shifts": ((31, 31, 31), randomness._FACTORS),
    "small factors": (randomness._SHIFTS, (3, 5, 9)),
}


@pytest.mark.parametrize("weak", WEAK)
def test_a_weak_hash_is_told(weak, monkeypatch):
    for name, value in zip(("_SHIFTS", "_FACTORS"), WEAK[weak], strict=True):
        monkeypatch.setattr(randomness, name, value)
    assert next(flaws(ours, RATES[1:]), None)


def test_keys_that_ignore_the_row_or_the_place_are_told():
    def one_row(keys, p, shape):
        return jnp.broadcast_to(bernoulli(keys[0], p, (1, *shape[1:])), shape)

    def lines(keys, p, shape):
        return jnp.broadcast_to(bernoulli(keys, p, (*shape[:2], 1, shape[3])), shape)

    assert (0.5, "rows 1 apart") in dict(flaws(one_row, RATES[1:]))
    assert (0.5, "lag 128") in dict(flaws(lines, RATES[1:]))


def bits_of(first, second, places):
    """A bit pattern for each place of each of the keys."""
    words = jnp.stack([jnp.asarray(first), jnp.asarray(second)], -1)
    return np.asarray(randomness._bits(words, (len(words), places)))


def test_a_bit_of_key_or_place_acts_on_every_bit_that_counts():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2**32, (2, 4096), dtype=np.uint32)
    was = bits_of(first, second, 257)
    changed = [
        *((bits_of(first ^ np.uint32(1 << i), second, 1) ^ was[:, :1])[:, 0] for i in range(32)),
        *((bits_of(first, second ^ np.uint32(1 << i), 1) ^ was[:, :1])[:, 0] for i in range(32)),
        *(was[:, 1 << i] ^ was[:, 0] for i in range(9)),
    ]
    upper = np.stack(changed)[..., None] >> np.arange(8, 32, dtype=np.uint32) & 1
    assert np.abs(upper.mean(1) - 0.5).max() < 0.06  # 0.043 of it is no chance: the last key bits


def test_rows_whose_first_words_are_near_differ():
    """Their places overlap, so that all depends on the second word."""
    second = np.random.default_rng(1).integers(0, 2**32, 65, dtype=np.uint32)
    second = np.concatenate([second, second[:1] + np.arange(1, 5, dtype=np.uint32)])
    bits = bits_of(np.full_like(second, 0xFFFFFF00), second, 1 << 14)
    for rate in RATES:
        drops = bits < np.uint32(rate * 2**32)
        assert max(abs(correlation(drops[0], other)) for other in drops[1:]) < SIGMAS


def test_the_formula():
    """In NumPy's 64 bits, on any device: the first and the last of a row, past 2^32, too."""
    first, second = 0xFFFFFFF0, 0x89ABCDEF
    shape = (1, 5, 7)

    def by_hand(place):
        x = (place + first) % 2**32
        x = ((x ^ x >> 17) * 0xED5AD4BB + second) % 2**32
        x = (x ^ x >> 11) * 0xAC4C1B51 % 2**32
        return (x ^ x >> 15) * 0x31848BAB % 2**32

    words = jnp.array([[first, second]], jnp.uint32)
    expected = np.array([by_hand(place) for place in range(35)], np.uint32)
    np.testing.assert_array_equal(randomness._bits(words, shape), expected.reshape(shape))
    whole = randomness._bits(words[0], shape)  # one key for all: the same row
    np.testing.assert_array_equal(whole, expected.reshape(shape))


def test_a_row_depends_on_its_key_alone():
    keys, shape = keys_of_rows(rows=8), (8, 2, 3, 50)
    whole = bernoulli(keys, 0.5, shape)
    np.testing.assert_array_equal(bernoulli(keys[5:6], 0.5, (1, *shape[1:])), whole[5:6])
    np.testing.assert_array_equal(bernoulli(keys[5], 0.5, shape[1:]), whole[5])
    np.testing.assert_array_equal(bernoulli(keys[::-1], 0.5, shape), whole[::-1])
    assert len({row.tobytes() for row in np.asarray(whole)}) == 8


AXES = (("data", "fsdp", "tensor"), (2, 2, 2))
SPECS = [
    (("data", "fsdp"), None, None, None),
    (("data", "fsdp"), "tensor", None, None),
    (None, None, None, ("data", "tensor")),
    (("data", "fsdp", "tensor"), None, None, None),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("of_rows", [True, False])
def test_any_mesh_draws_the_same(spec, of_rows):
    shape = (8, 4, 3, 16)
    key = keys_of_rows(rows=8) if of_rows else stream(0, "dropout")
    alone = bernoulli(key, 0.5, shape)
    mesh = jax.make_mesh(AXES[1], AXES[0], axis_types=(AxisType.Auto,) * 3)
    if of_rows:
        key = jax.device_put(key, NamedSharding(mesh, PartitionSpec(spec[0])))
    cut = NamedSharding(mesh, PartitionSpec(*spec))
    draw = jax.jit(lambda key: bernoulli(key, 0.5, shape), out_shardings=cut)
    drawn = draw(key)
    assert drawn.sharding.is_equivalent_to(cut, 4)
    np.testing.assert_array_equal(drawn, alone)
    if not of_rows:  # keys of rows are made where they are used
        assert "all-" not in draw.lower(key).compile().as_text()


@pytest.mark.parametrize("made", [float, jnp.float32, lambda p: jax.jit(jnp.float32)(p)])
def test_never_and_always(made):
    keys, shape = keys_of_rows(rows=8), (8, 4, 4096)
    assert not bernoulli(keys, made(0.0), shape).any()
    assert bernoulli(keys, made(1.0), shape).all()
    share = bernoulli(keys, made(0.25), shape).mean()
    assert abs(float(share) - 0.25) < SIGMAS * np.sqrt(0.25 * 0.75 / 2**17)


def test_more_places_than_numbers_are_refused():
    one, keys = stream(0, "dropout"), keys_of_rows(rows=2)

    def shape_of(key, *shape):
        return jax.eval_shape(lambda key: bernoulli(key, 0.5, shape), key).shape

    assert shape_of(keys, 2, 1 << 16, 1 << 16) == (2, 1 << 16, 1 << 16)
    for key, shape in ((one, (2, 1 << 16, 1 << 16)), (keys, (2, 1 << 16, (1 << 16) + 1))):
        with pytest.raises(ValueError, match="more than the 2\\^32 of one key"):
            shape_of(key, *shape)
    with pytest.raises(ValueError, match="3 keys for 2 rows"):
        shape_of(keys_of_rows(rows=3), 2, 5)


def test_an_element_costs_a_dozen_operations():
    """In the program that XLA is given; what it makes of the axes' numbers is not in it."""
    keys, shape = keys_of_rows(rows=8), (8, 2, 128)
    program = jax.make_jaxpr(lambda keys: ours(keys, 0.9, shape))(keys)
    each = [e.primitive.name for e in program.eqns if e.outvars[0].aval.shape == shape]
    each = [name for name in each if name not in ("broadcast_in_dim", "convert_element_type")]
    assert len(each) == 13 and each.count("mul") == 3, each
