"""The reader of serialised examples, beside protobuf's own."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from uniadapter_jax.data.examples import floats, read_example


def example(frames, pts):
    made = tf_example_pb2.Example()
    features = made.features.feature
    features["id"].bytes_list.value.append(b"name")
    features["frames"].bytes_list.value.extend(frames)
    features["pts"].float_list.value.extend(pts)
    features["qa"].bytes_list.SetInParent()
    return made.SerializeToString(deterministic=True)


@pytest.mark.parametrize("sizes", [(), (0,), (1, 127, 128), (200, 70_000, 3)])
def test_reads_what_protobuf_wrote(sizes):
    rng = np.random.default_rng(0)
    frames, pts = [rng.bytes(n) for n in sizes], rng.random(len(sizes)).astype(np.float32)
    values = read_example(example(frames, pts))
    assert list(values) == ["frames", "id", "pts", "qa"]
    assert [bytes(frame) for frame in values["frames"]] == frames
    assert values["id"] == [b"name"] and values["qa"] == []
    np.testing.assert_array_equal(floats(values["pts"]), pts)


def test_nothing_is_copied():
    data = example([bytes(1000)], [])
    assert read_example(data)["frames"][0].obj is data


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_what_is_cut_short_is_an_error(cut):
    with pytest.raises(ValueError, match=r"left|end"):
        read_example(example([bytes(100)], [1.0])[:cut])


def test_other_messages_are_an_error():
    with pytest.raises(ValueError, match="wire type"):
        read_example(b"\x08\x01")
