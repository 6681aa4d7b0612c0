"""`load_model`'s models and `testing`: nonsense is refused by name, other dress changes nothing."""

import json
import random

import cma
import doors
import jax
import numpy as np
import pytest
import tiny

from uniadapter_jax import load_model, testing
from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference import gallery

SHARE = 300  # of the wrong arguments, every day; all of them under `slow`


@pytest.fixture(scope="module", autouse=True)
def _compiling_fast():
    with cma.compiling_fast():
        yield


@pytest.fixture(scope="module")
def clip():
    return doors.clip()


@pytest.fixture(scope="module")
def blip():
    return doors.blip()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -- wrong arguments ------------------------------------------------------------------------------


def refuse(cases):
    """Every case ends in a `UserError`; the others are listed."""
    accepted = []
    for name, call, arguments in cases:
        try:
            call(**arguments)
        except UserError:
            continue
        except Exception as error:  # any other error is a fault, too
            accepted.append(f"{name}: {type(error).__name__}: {error}")
        else:
            accepted.append(f"{name}: accepted")
    assert not accepted


def test_wrong_arguments_are_refused():
    cases = list(doors.cases())
    refuse(random.Random(0).sample(cases, SHARE))


@pytest.mark.slow
def test_every_wrong_argument_is_refused():
    refuse(doors.cases())


def same(name, dresses):
    """The door gives the same bits whatever an array comes as."""
    door = doors.doors()[name]
    expected = jax.tree.leaves(door.call(**door.arguments))
    for path in door.kinds:
        for value in dresses(doors.at(door.arguments, path)):
            found = jax.tree.leaves(door.call(**doors.changed(door.arguments, path, value)))
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{name}: {path}")


@pytest.mark.parametrize("name", ["clip text", "clip similarity", "clips", "blip ids", "reference"])
def test_arrays_may_be_lists_of_any_order_of_bytes(name):
    same(name, doors.alike)


@pytest.mark.slow
def test_arrays_may_be_lists_at_every_door():
    for name in (name for name, door in doors.doors().items() if door.kinds):
        same(name, doors.alike)


@pytest.mark.parity
def test_arrays_may_be_tensors():
    """Of PyTorch, also such as a gradient is asked of."""
    torch = pytest.importorskip("torch")

    def dresses(value):
        if not isinstance(value, np.ndarray):
            return []
        tensor = torch.as_tensor(value)
        return [tensor, tensor.requires_grad_()] if tensor.is_floating_point() else [tensor]

    for name in (name for name, door in doors.doors().items() if door.kinds):
        same(name, dresses)


def negatives(clip, text=(2, 0, 1)):
    return {"negatives": {"clip": np.array(clip), "text": np.array(text)}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (negatives([0, 2, 1]), r"negatives\['clip'\]: row 0 is of item 4, as is row 0"),
        (negatives([1, 2, 0], [2, 1, 0]), r"negatives\['text'\]: row 1 is of item 5, as is row 1"),
        ({"item": np.array([4, 4, 6])}, r"negatives\['clip'\]: row 1 is of item 4, as is row 0"),
        ({"frame_mask": np.ones((3, 1, 2))}, r"frame_mask has the shape \(3, 1, 2\), .* \(m, f\)"),
        ({"text": np.full((3, 6), 60)}, "text has values from 60 to 60, expected 0 to 59"),
        ({"text": np.full((3, 13), 7)}, "text: rows of 13 ids, the model reads 1 to 12"),
        ({"alpha": 0.4}, "no momentum"),
    ],
)
def test_wrong_pairs_are_named(blip, rng, change, said):
    with pytest.raises(UserError, match=said):
        testing.loss_and_grads(blip, doors.pairs(rng) | change, "itm")


def test_other_layouts_of_momentum_and_queue_are_named(blip, rng):
    """BLIP's own have features first; where that is square, the lengths of rows tell."""
    batch = doors.pairs(rng) | doors.momentum(rng)
    for what, said in (
        ("momentum", r"shape \(16, 3\), expected \(n, c\), n = 3, c = 16"),
        ("queue", "length"),
    ):
        turned = {
            side: value.T if value.ndim == 2 else value for side, value in batch[what].items()
        }
        with pytest.raises(UserError, match=rf"{what}\['image'\].*{said}"):
            testing.loss_and_grads(blip, batch | {what: turned}, "itc")
    short = batch["queue"] | {"text": batch["queue"]["text"][:8]}
    with pytest.raises(UserError, match=r"queue\['image'\] has 16 rows, queue\['text'\] 8"):
        testing.loss_and_grads(blip, batch | {"queue": short}, "itc")


def test_answers_begin_with_dec(blip, rng):
    batch = doors.asked(rng)
    batch["answer"][2, 1, 0] = doors.CLS
    with pytest.raises(
        UserError, match=r"answer: row 2, 1 begins with the id 2, expected \[DEC\], 58"
    ):
        testing.loss_and_grads(blip, batch, "vqa")
    question = {name: batch[name] for name in ("frames", "question")}
    with pytest.raises(
        UserError, match=r"candidates: row 0 begins with the id 2, expected \[DEC\]"
    ):
        testing.rank_scores(blip, question, doors.texts(4, rng))
    with pytest.raises(UserError, match=r"texts: row 0 begins with the id 58, expected \[CLS\], 2"):
        blip.encode_text(doors.texts(4, rng, doors.DEC))


def test_what_a_model_lacks_is_said(clip, rng):
    batch, films = doors.asked(rng), np.zeros((1, 1, 32, 32, 3), np.uint8)
    matching, answering = doors.blip((MATCHING,)), doors.blip((ANSWERING,))
    question = {name: batch[name] for name in ("frames", "question")}
    for call in (
        lambda: testing.loss_and_grads(matching, batch, "vqa"),
        lambda: testing.rank_scores(matching, question, doors.texts(4, rng, doors.DEC)),
        lambda: matching.answer(films, ["what"]),
    ):
        with pytest.raises(UserError, match="decoder"):
            call()
    with pytest.raises(UserError, match="needs a BLIP with heads for matching"):
        testing.loss_and_grads(answering, doors.pairs(rng), "itm")
    for call in (answering.encode_clips, lambda x: answering.match(x, ["what"])):
        with pytest.raises(UserError, match="matching head"):
            call(films)
    answering.task["frame_weights"] = True
    with pytest.raises(UserError, match="frame_weights needs projections"):
        answering.answer(films, ["what"])
    with pytest.raises(UserError, match="task vqa needs a blip, the model is a CLIP"):
        testing.rank_scores(clip, question, doors.texts(4, rng, doors.DEC))
    with pytest.raises(UserError, match="ranks answers to questions, task 'vqa', not 'matching'"):
        testing.rank_scores(matching, question, doors.texts(4, rng, doors.DEC), "matching")


def test_a_backbone_is_asked_for_by_right_names(small):
    source = f"random:{small.backbone}"
    for wrong, said in (
        ({"backbone": None}, "backbone=None: a path"),
        ({"backbone": ""}, "backbone='': a path"),
        ({"adapter": 3}, "adapter=3: a path"),
        ({"tokenizer": str(small.root / "none")}, "none' holds none of tokenizer.json"),
        ({"dtype": "float16"}, "dtype='float16': choose one of float32, bfloat16"),
        ({"batch_size": 0}, "batch_size=0: at least 1"),
        ({"batch_size": 2.0}, "batch_size=2.0: a whole number"),
        ({"seed": -1}, "seed=-1"),
        ({"similarity": "max"}, "similarity 'max'"),
        ({"similarity": 3}, "similarity 3"),
    ):
        with pytest.raises(UserError, match=said):
            load_model(**{"backbone": source, **wrong})


def test_the_tokenizer_has_the_roles_of_the_backbone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.blip_config()))
    tokens = list(doors.TOKENS)
    tokens[5], tokens[6] = tokens[6], tokens[5]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(
        UserError, match=r"\[SEP\] is 6 in the tokenizer in .*, but 5 in the config"
    ):
        load_model(f"random:{tmp_path / 'config.json'}", tokenizer=tmp_path)


def test_frames_that_are_no_jpeg_are_named():
    for frames, said in (([b"x"], r"frames\[0\] is no JPEG"), ([], "at least one"), (b"x", "list")):
        with pytest.raises(UserError, match=said):
            gallery.film_strip(frames)


# -- options --------------------------------------------------------------------------------------


def test_options_count_from_the_next_call_on(blip, rng):
    """At the same shapes, to and fro; a model that had them from the start gives the same."""
    films = rng.integers(0, 256, (2, 2, 32, 32, 3)).astype(np.uint8)
    films = films, ["what is grey", "is w1 w2"]
    weighted = doors.blip(task={"frame_weights": True}).match(*films)
    plain = blip.match(*films), blip.answer(*films, ["yes", "no w3"])
    assert np.abs(plain[0] - weighted).max() > 1e-4
    blip.task.update({"frame_weights": True})
    np.testing.assert_array_equal(blip.match(*films), weighted)
    blip.task |= {"frame_weights": False, "rank_smoothing": 0.0}
    assert blip.answer(*films, ["yes", "no w3"]) != plain[1]
    blip.task["rank_smoothing"] = 0.1
    np.testing.assert_array_equal(blip.match(*films), plain[0])
    assert blip.answer(*films, ["yes", "no w3"]) == plain[1]
    whole = blip.encode_text(["what is grey"])
    blip.task["max_words"] = 2
    np.testing.assert_array_equal(blip.encode_text(["what is grey"]), blip.encode_text(["what is"]))
    blip.task["max_words"] = 0
    np.testing.assert_array_equal(blip.encode_text(["what is grey"]), whole)


def test_how_pictures_are_resized_counts_likewise(clip, rng):
    wide = rng.integers(0, 256, (1, 32, 64, 3)).astype(np.uint8)
    cropped = clip.encode_frames(wide)
    np.testing.assert_allclose(cropped, clip.encode_frames(wide[:, :, 16:48]), atol=1e-6)
    clip.task["resize"] = "squash"
    assert np.abs(clip.encode_frames(wide) - cropped).max() > 1e-4
    clip.task["resize"] = "crop"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("frame_weight", True, "has no field 'frame_weight'; did you mean 'frame_weights'"),
        ("metric", "exact", "has no field 'metric'"),
        ("frame_weights", 1, "task.frame_weights=1: expected True or False"),
        ("beams", 0, "task.beams=0: at least 1"),
        ("rank_smoothing", 1.0, "task.rank_smoothing=1.0"),
        ("generate_mask", "all", "task.generate_mask='all': choose one of padding, released"),
        ("words", 13, "task.words=13: the model reads 12"),
        ("resize", "fit", "task.resize='fit': choose one of crop, squash"),
    ],
)
def test_options_that_cannot_be_are_refused(blip, name, value, said):
    for change in (
        lambda: blip.task.__setitem__(name, value),
        lambda: blip.task.update({name: value}),
        lambda: blip.task.__ior__({name: value}),
    ):
        with pytest.raises(UserError, match=said):
            change()
    with pytest.raises(UserError, match="cannot be left out"):
        del blip.task["beams"]


# -- nothing --------------------------------------------------------------------------------------


def test_of_nothing_there_is_nothing(clip, blip, rng):
    films, none = np.zeros((2, 1, 32, 32, 3), np.uint8), np.zeros((0, 32, 32, 3), np.uint8)
    for found, shape in (
        (clip.encode_frames(none), (0, 24)),
        (clip.encode_frames(none.astype(np.float32)), (0, 24)),
        (clip.encode_frames([]), (0, 24)),
        (clip.encode_text([]), (0, 24)),
        (clip.encode_text(np.zeros((0, 6), int)), (0, 24)),
        (clip.similarity(np.zeros((0, 24)), np.zeros((3, 2, 24))), (0, 3)),
        (clip.similarity(np.zeros((2, 24)), np.zeros((0, 24))), (2, 0)),
        (blip.encode_clips(none), (0, 16)),
        (blip.encode_clips([]), (0, 16)),
        (blip.encode_clips(films[:0]), (0, 16)),
        (blip.encode_text([]), (0, 16)),
        (blip.encode_text(np.zeros((0, 6), np.int64)), (0, 16)),
        (blip.similarity(np.zeros((0, 16)), doors.units(3, rng)), (0, 3)),
        (blip.match(films, []), (0, 2, 2)),
        (blip.match(none, ["what", "is"]), (2, 0, 2)),
        (blip.match([], []), (0, 0, 2)),
    ):
        assert found.shape == shape and found.dtype == np.float32
    assert blip.answer([], []) == blip.answer(none, [], ["yes"]) == []
    assert blip.answer(films, ["what", "is"], []) == [[], []]
    question = {"frames": films, "question": doors.texts(2, rng)}
    for batch, candidates, shape in (
        (question, np.zeros((0, 6), int), (2, 0)),
        ({k: v[:0] for k, v in question.items()}, doors.texts(4, rng, doors.DEC), (0, 3)),
    ):
        best, scores = testing.rank_scores(blip, batch, candidates, {"rank_k": 3})
        assert best.shape == scores.shape == shape
        assert (best.dtype, scores.dtype) == (np.int32, np.float32)
    with pytest.raises(UserError, match="the batch is empty"):
        testing.loss_and_grads(clip, {k: np.asarray(v)[:0] for k, v in tiny.batch().items()})


# -- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(MATCHING,), (MATCHING, ANSWERING)])
def test_what_trains_as_released_does_not_depend_on_the_norm(parts):
    """LN_x, which never trains there, is counted on our side alone."""
    frozen, trained = (
        testing.trained_counts(doors.blip(parts, train_cross_norm=t)) for t in (False, True)
    )
    model = doors.blip(parts, train_cross_norm=True)
    sizes = {name: x.size for name, x in flat_names(model.partition.trainable).items()}
    norm = sum(size for name, size in sizes.items() if "ln_cross" in name)
    assert trained["trained"] - frozen["trained"] == norm > 0
    assert trained["as_released"] == frozen["as_released"]
    assert (frozen["as_released"] > frozen["trained"]) == (ANSWERING in parts)
