"""Writes tests/golden/uniadapter.npz: what the authors' PyTorch code of UniAdapter computes.

    python tests/golden/make_uniadapter.py CHECKOUT          # of RERV/UniAdapter
    python tests/golden/make_uniadapter.py CHECKOUT --base image vqa    # or other CASES

The second compares with ours at full size, BLIP-base at 224 pixels with r = 512, and writes nothing
(8 GB).

Needs torch and transformers beside this package; made with torch 2.13 at their commit 796c124. The
checkout is run as it is (see `released_uniadapter`), in float32 without dropout, and nothing of it
is kept but numbers: states, features, logits, losses and the gradients of all that a method trains,
on random weights, LN_x and biases included.

Momentum. Theirs keeps whole copies of both encoders and of the adapters, and averages the latter
twice a step, because both encoders list them: old * m^2 + new * (1 - m^2); heads and the adapters
of keys and values once. Ours averages trainables alone, all once. What is compared: one such update
(ours done twice for what they do twice), features by the averages that it gives, and losses with
given features, queue and weight.
"""

import argparse
import contextlib
import pathlib
import re
import sys
import tempfile
import zlib

import numpy as np
import torch
from released_uniadapter import BASE, TINY, Released, named, randomize

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

ITEMS = (7, 3, 7, 5)
NEGATIVES = {"clip": (1, 2, 3, 0), "text": (3, 0, 1, 2)}  # none shows its own item
ALPHA = 0.3
MOMENTUM = 0.995
ANSWERS_OF = (2, 1, 3, 1)  # how many answers a question has
# Of what `uniadapter.differences` returns.
KINDS = {
    "forward": r"[^.]*",
    "losses": r"[a-z]*\.loss",
    "gradients": r"[a-z]*\.grad\..*",
    "gradients that are zero, absolute": r"none\..*",
    "an update of momentum": r"after\..*",
}


def inputs(sizes, frames, words, answer_words):
    """Seeded inputs; ids of words stay below [DEC] and [ENC], texts have several lengths."""
    torch.manual_seed(0)
    n, vocab = len(ITEMS), sizes.vocab
    unit = torch.nn.functional.normalize

    def texts(rows, length):
        ids = torch.randint(4, vocab - 2, (rows, length))
        for row in range(rows):
            ids[row, length - row % 3 :] = 0
        return ids

    answers = texts(sum(ANSWERS_OF), answer_words)
    answers[:, 0] = vocab - 2
    candidates = texts(6, answer_words)
    candidates[:, 0] = vocab - 2
    return {
        "clips": torch.randn(n, frames, 3, sizes.image, sizes.image).half().float(),
        "text": texts(n, words),
        "item": torch.tensor(ITEMS),
        "queue_image": unit(torch.randn(sizes.queue, sizes.embed), dim=1).half().float(),
        "queue_text": unit(torch.randn(sizes.queue, sizes.embed), dim=1).half().float(),
        "queue_item": torch.arange(sizes.queue) % 11,
        "answers": answers,
        "answer_weight": torch.rand(len(answers)),
        "candidates": candidates,
    }


@contextlib.contextmanager
def given_negatives():
    """Their draws, in their order: a clip for each text, then a text for each clip."""
    drawn = iter(NEGATIVES["clip"] + NEGATIVES["text"])
    kept, torch.multinomial = torch.multinomial, lambda weights, count: torch.tensor(next(drawn))
    try:
        yield
    finally:
        torch.multinomial = kept
    assert next(drawn, None) is None


@contextlib.contextmanager
def outputs_of(**modules):
    """{name: what the module gave, call by call} of what runs inside."""
    found = {name: [] for name in modules}
    hooks = [
        module.register_forward_hook(lambda *call, name=name: found[name].append(call[-1]))
        for name, module in modules.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def gradients(model, loss, prefix):
    """Of all that trains and LN_x; what a loss does not use has none."""
    heads = ("vision_proj.", "text_proj.", "itm_head.")
    trained = {k: p for k, p in named(model).items() if "adapter" in k or k.startswith(heads)}
    found = torch.autograd.grad(loss, trained.values(), retain_graph=True, allow_unused=True)
    pairs = zip(trained, found, strict=True)
    return {f"{prefix}.grad.{name}": value for name, value in pairs if value is not None}


def set_averages(model):
    """Gives momentum its own random adapters and heads; its frozen parts equal the model's."""
    model.copy_params()
    averaged = {}
    for name, parameter in model.named_parameters():
        if "_m." not in name or not ("adapter" in name or "_proj" in name):
            continue
        official = name.replace("_m.", ".", 1)
        torch.manual_seed(zlib.crc32(name.encode()))
        value = parameter.data + 0.3 * parameter.abs().mean() * torch.randn_like(parameter)
        parameter.data = value.half().float()
        averaged[official] = parameter.data.clone()
    return averaged


def retrieval_case(model, given, momentum, backward):
    """Everything of one training step; gradients of the losses named in `backward`."""
    case = {}
    clips = given["clips"] if model.config["modality"] == "video" else given["clips"][:, 0]
    if momentum:
        case |= {f"before.{name}": value for name, value in set_averages(model).items()}
        model.image_queue.copy_(given["queue_image"].T)
        model.text_queue.copy_(given["queue_text"].T)
        model.idx_queue.copy_(given["queue_item"][None])
        model.ptr_queue.zero_()
    modules = {
        "vision": model.visual_encoder,
        "text": model.text_encoder,
        "match": model.itm_head,
        "image_proj": model.vision_proj,
        "text_proj": model.text_proj,
    }
    with given_negatives(), outputs_of(**modules) as found:
        itc, itm = model(clips, given["text"], ALPHA, given["item"])
    alone, positive, negative = (call.last_hidden_state for call in found["text"])
    unit = torch.nn.functional.normalize
    n = len(ITEMS)
    case |= {
        "vision": found["vision"][0],
        "text": alone,
        "fused": torch.cat([positive, negative]),
        "match": found["match"][0],
        "frame_features": unit(found["image_proj"][0], dim=-1),
        "clip_features": unit(found["image_proj"][1], dim=-1),
        "text_features": unit(found["text_proj"][0], dim=-1),
        "itc.loss": itc,
        "itm.loss": itm,
        "matching.loss": itc + itm,
    }
    for name in backward:
        case |= gradients(model, case[f"{name}.loss"], name)
    if momentum:
        case["momentum_image"] = model.image_queue[:, :n].T
        case["momentum_text"] = model.text_queue[:, :n].T
        averaged = {name.replace("_m.", ".", 1): p for name, p in model.named_parameters()}
        case |= {f"after.{k[7:]}": averaged[k[7:]] for k in case if k.startswith("before.")}
    return case


def vqa_case(model, given, count):
    """Training loss, decoder logits, and scores of all candidates in rank mode."""
    modules = {"question": model.text_encoder, "decoder": model.text_decoder}
    arguments = given["clips"][:, 0], given["text"]
    with outputs_of(**modules) as found:
        loss = model(*arguments, given["answers"], list(ANSWERS_OF), given["answer_weight"])
    case = {
        "question": found["question"][0].last_hidden_state,
        "decoder": found["decoder"][0].logits,
        "vqa.loss": loss,
    }
    case |= gradients(model, loss, "vqa")
    candidates = model.tokenizer(given["candidates"])
    with torch.no_grad(), outputs_of(**modules) as found:
        best = model(*arguments, candidates, train=False, k_test=count)
    first, full = found["decoder"]
    chances = first.logits[:, 0, given["candidates"][:, 1]]
    order = chances.topk(count, dim=1).indices  # as they rank before they score
    return case | {
        "rank_order": order,
        "rank_scores": -full.loss.view(len(order), count),
        "best": best,
    }


CASES = ("image", "alone", "bare", "video", "vqa")
BACKWARD = {"image": ("matching",), "alone": ("itc",), "bare": (), "video": ("itm",)}


def cases(theirs, sizes, given, names=CASES):
    """(name, tensors by official name, numbers) of each case."""
    n = len(ITEMS)
    makers = {
        "image": lambda: theirs.retrieval(sizes),
        "alone": lambda: theirs.retrieval(sizes, momentum=False),
        "bare": lambda: theirs.retrieval(sizes, momentum=False, video_key_adapter=False),
        "video": lambda: theirs.retrieval(sizes, frame_aware_attention=True, modality="video"),
        "vqa": lambda: theirs.vqa(sizes),
    }
    for name in names:
        model = randomize(makers[name]())
        if name == "vqa":
            case = vqa_case(model, given, n - 1)
        else:
            case = retrieval_case(model, given, name in ("image", "video"), BACKWARD[name])
        tensors = {key: value.detach().numpy() for key, value in named(model).items()}
        yield name, tensors, {k: v.detach().numpy().copy() for k, v in case.items()}


def kept(name, key):
    """Whether the small file has it: what other cases tell already is left out."""
    if name == "image":
        return True
    if name == "alone":
        return key.startswith("itc.")
    if name == "bare":
        return key in ("fused", "match", "itm.loss")
    if name == "video":
        wanted = ("fused", "match", "frame_features", "clip_features", "itm.loss")
        return key in wanted or key.startswith("itm.grad")
    return True


def make(checkout):
    given = inputs(TINY, frames=3, words=8, answer_words=5)
    arrays = {f"given/{name}": value.numpy() for name, value in given.items()}
    for name in ("clips", "queue_image", "queue_text"):
        arrays[f"given/{name}"] = arrays[f"given/{name}"].astype(np.float16)
    for name, tensors, case in cases(Released(checkout), TINY, given):
        for key, value in tensors.items():
            stored = arrays.setdefault(f"tensors/{key}", value.astype(np.float16))
            assert np.array_equal(stored, value), key
        arrays |= {f"{name}/{key}": value for key, value in case.items() if kept(name, key)}
    np.savez_compressed(HERE / "uniadapter.npz", **arrays)


def compare_base(checkout, names):
    import uniadapter

    given = inputs(BASE, frames=2, words=35, answer_words=6)
    arrays = {name: value.numpy() for name, value in given.items()}
    for name, tensors, case in cases(Released(checkout), BASE, given, names):
        with tempfile.TemporaryDirectory() as scratch:
            found = uniadapter.differences(name, case, arrays, tensors, None, scratch)
        for kind, pattern in KINDS.items():
            of_kind = {value: key for key, value in found.items() if re.fullmatch(pattern, key)}
            if of_kind:
                worst = max(of_kind)
                print(f"BLIP-base, {name}, {kind}: {worst:.1e} ({of_kind[worst]})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout")
    parser.add_argument("--base", nargs="+", choices=CASES, metavar="CASE")
    args = parser.parse_args()
    compare_base(args.checkout, args.base) if args.base else make(args.checkout)


if __name__ == "__main__":
    main()
