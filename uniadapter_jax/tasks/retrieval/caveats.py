"""Warnings that belong beside the numbers of a result, wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uniadapter_jax.tasks.retrieval.metrics import DIRECTIONS, RECALLS

SHOWN_FROM = 0.01  # share of tied queries; a few copies in a set are no news


def of_result(result: Mapping[str, Any]) -> list[str]:
    """Lines about a result.json, of any version and task; empty where there is nothing to say."""
    if "texts" not in result:  # questions are not ranked
        return []
    k = _protocol(result, "rerank_k", 0)
    return [*tied(result), *beyond_reranking(k, texts=result["texts"], clips=result["clips"])]


def tied(result: Mapping[str, Any]) -> list[str]:
    """A line for each direction in which more than 1 % of the queries are tied."""
    rule, lines = _protocol(result, "ties", "optimistic"), []
    for way in DIRECTIONS if "tied_queries" in result else ():
        count, queries = result["tied_queries"][way], len(result["ranks"][way])
        if count > SHOWN_FROM * queries:
            line = f"{way}: {count} of {queries} queries tied; task.ties={rule} decides their ranks"
            if rule != "pessimistic" and "pessimistic_metrics" in result:
                line += f" (pessimistic: R@1 {result['pessimistic_metrics'][way]['R@1']:.1f})"
            lines.append(line)
    return lines


def beyond_reranking(k: int, *, texts: int, clips: int) -> list[str]:
    """A line where a recall looks beyond the best k, behind which all candidates tie; 0: no k."""
    lines = []
    for way, candidates in zip(DIRECTIONS, (clips, texts), strict=True):
        names = [f"R@{at}" for at in RECALLS if 0 < k < min(at, candidates)]
        if names:
            verb = "means" if len(names) == 1 else "mean"
            lines.append(
                f"{way}: {' and '.join(names)} {verb} nothing: behind the best task.rerank_k={k} "
                "all candidates tie"
            )
    return lines


def _protocol(result: Mapping[str, Any], name: str, default: Any) -> Any:
    """Results of other tasks and of earlier versions do not have every field."""
    protocol = result["protocol"] if "protocol" in result else {}
    return protocol[name] if name in protocol else default
