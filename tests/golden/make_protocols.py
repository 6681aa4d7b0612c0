"""Makes protocols.npz: what CLIP4Clip's and BLIP's own evaluation says of 1,000 random cases.

    python tests/golden/make_protocols.py CLIP4CLIP BLIP

The arguments are checkouts of github.com/ArrowLuo/CLIP4Clip (its metrics.py is imported) and
github.com/salesforce/BLIP (the function itm_eval of its train_retrieval.py). Needs PyTorch. A case
is drawn from its number by `case` in tests/protocol_cases.py: 2 to 40 clips of 1 to 81 captions
each, no two scores equal.
"""

from __future__ import annotations

import ast
import pathlib
import sys
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from protocol_cases import CASES, case


def function_of(path: pathlib.Path, name: str) -> Any:
    """One function of a file whose other imports are not at hand."""
    tree = ast.parse(path.read_text())
    wanted = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    for node in wanted:
        node.decorator_list = []
    space: dict[str, Any] = {"np": np}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), space)
    return space[name]


def clip4clip(metrics: Any, similarity: np.ndarray, item: np.ndarray) -> list[float]:
    """Both directions as its main_task_retrieval.py measures several sentences a clip."""
    clips = similarity.shape[1]
    groups = [similarity[item == clip] for clip in range(clips)]
    longest = max(map(len, groups))
    padded = np.full((clips, longest, clips), -np.inf, np.float32)
    for place, group in enumerate(groups):
        padded[place, : len(group)] = group
    forth = metrics.tensor_text_to_video_metrics(torch.tensor(padded))
    back = metrics.compute_metrics(metrics.tensor_video_to_text_sim(torch.tensor(padded)).numpy())
    return [
        *(forth[name] for name in ("R1", "R5", "R10", "MeanR")),
        *(back[name] for name in ("R1", "R5", "R10", "MR", "MeanR")),
    ]


def blip(itm_eval: Any, similarity: np.ndarray, item: np.ndarray) -> list[float]:
    """Recalls of texts to pictures, then of pictures to texts."""
    texts = {clip: np.flatnonzero(item == clip).tolist() for clip in range(similarity.shape[1])}
    said = itm_eval(similarity.T, similarity, item.tolist(), texts)
    return [said[name] for name in ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10")]


def main(clip4clip_at: str, blip_at: str) -> None:
    sys.path.insert(0, clip4clip_at)
    import metrics

    itm_eval = function_of(pathlib.Path(blip_at) / "train_retrieval.py", "itm_eval")
    rows: dict[str, list[list[float]]] = {"clip4clip": [], "blip": []}
    for number in range(CASES):
        similarity, item = case(number)
        rows["clip4clip"].append(clip4clip(metrics, similarity, item))
        rows["blip"].append(blip(itm_eval, similarity, item))
    arrays = {name: np.array(values, np.float64) for name, values in rows.items()}
    np.savez_compressed(pathlib.Path(__file__).parent / "protocols.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
