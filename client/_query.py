"""One request from the terminal: `python -m client query`, and `builder query`, which is the same."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client._client import RetrievalClient
from client._explanation import Explanation
from client._models import Ranking, Request, Retrieval
from client.errors import RequestError
from client.filters.text import parse_filter
from client.options import TLS
from client.schema import Schema

DEFAULT_RESULTS = 10
_EXAMPLE = """example:
  %(prog)s --user user_id=42 --history 50,181 --filter 'F.genres.any_of("Drama") & (F.year >= 1990)'
"""


def query(arguments: Sequence[str], *, program: str) -> None:
    """Ask and print. Raises `SilverTritonError`, and `SystemExit` for wrong usage, with 2, and for --help."""
    parser = _parser(program)
    asked = parser.parse_args(arguments)
    ranks = asked.rank is not None
    if ranks and any(value is not None for value in (asked.filter, asked.exclude, asked.probes, asked.candidates)):
        parser.error("--rank searches nothing: leave out --filter, --exclude, --probes, --candidates")
    if ranks and asked.explain is not None:
        parser.error("--rank searches nothing that --explain could explain: leave one of them out")
    encrypted = asked.tls or any(file is not None for file in (asked.ca, asked.certificate, asked.key))
    condition = None if asked.filter is None else parse_filter(asked.filter)
    client = RetrievalClient(
        asked.address,
        model=asked.model,
        version=asked.model_version,
        timeout=asked.timeout,
        headers=dict(asked.header),
        tls=TLS(asked.ca, asked.certificate, asked.key) if encrypted else None,
    )
    result: Retrieval | Ranking | RequestError
    with client:
        whom = {
            "user": _user(parser, asked.user, client.schema),
            "history": asked.history,
            "query": asked.query,
            "task_weights": dict(asked.weight) or None,
        }
        if ranks:
            result = client.rank(**whom, items=asked.rank, k=asked.k)
        else:
            request = Request(
                **whom,
                filter=condition,
                exclude=asked.exclude,
                k=min(DEFAULT_RESULTS, client.schema.max_results) if asked.k is None else asked.k,
                probes=asked.probes,
                candidates=asked.candidates,
            )
            if asked.explain is not None:
                explanation = client.explain(asked.explain, request)
                print(_json(_explained(explanation)) if asked.json else explanation)
                return
            (result,) = client.retrieve_many([request])
            if isinstance(result, RequestError):
                raise result
    print(_json(_as_json(result)) if asked.json else _table(result))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [--user NAME=VALUE] [--history ID,ID,...] [--filter CONDITION] [-k K] ... | --help",
        description="Retrieve items for one user, score given ones, or explain one, and print that.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pairs: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    add = parser.add_argument
    add("--user", type=_pair(str), **pairs, help="a user feature; repeat for more")
    add("--history", type=_ids, metavar="ID,ID,...", help="item ids, newest last")
    add("--query", type=_vector, metavar="FILE", help=".npy file of one query vector [D]")
    add("--filter", metavar="CONDITION", help="""e.g. 'F.genres.any_of("Drama") & (F.year >= 1990)'""")
    add("--exclude", type=_ids, metavar="ID,ID,...", help="item ids never to return")
    add("--rank", type=_ids, metavar="ID,ID,...", help="score these items instead of searching")
    add("--explain", type=int, metavar="ID", help="say why this item is, or is not, among the results")
    add("-k", type=_count, help="results wanted [10; all that --rank names]")
    add("--weight", type=_pair(float), **pairs, help="weight of a task, in place of the artifact's; repeat for more")
    add("--probes", type=_count, metavar="N", help="clusters to probe [the artifact's]")
    add("--candidates", type=_count, metavar="N", help="candidates to rescore [the artifact's]")
    add("--json", action="store_true", help="print JSON for scripts instead of a table")
    server = parser.add_argument_group("server").add_argument
    server("--address", default="127.0.0.1:8001", help="host:port of the gRPC endpoint [%(default)s]")
    server("--model", default="retrieval", help="name of the served model [%(default)s]")
    server("--model-version", type=_count, metavar="N", help="version of the model [the server's choice]")
    server("--timeout", type=float, default=2.0, metavar="SECONDS", help="for the whole call [%(default)s]")
    server("--header", type=_pair(str), **pairs, help="sent with every call, such as a key; repeat for more")
    server("--tls", action="store_true", help="encrypt")
    server("--ca", metavar="FILE", help="encrypt, and trust these certificates (PEM) instead of the system's")
    server("--certificate", metavar="FILE", help="the client's own (PEM), with --key, where the server asks for one")
    server("--key", metavar="FILE", help="the private key of --certificate (PEM)")
    return parser


def _pair(value_of: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    def pair(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE")
        try:
            return name, value_of(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{name}: got {value!r}, expected a number") from None

    return pair


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected item ids with commas between") from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number above 0")
    return int(text)


def _vector(path: str) -> NDArray[Any]:
    try:
        loaded = np.load(Path(path), allow_pickle=False)
    except Exception as error:  # for a damaged header NumPy raises tokenizer and type errors too
        raise argparse.ArgumentTypeError(f"{path} is no .npy array: {error}") from error
    if not isinstance(loaded, np.ndarray):
        raise argparse.ArgumentTypeError(f"{path} is no .npy array, but an archive of several")
    return loaded


def _user(parser: argparse.ArgumentParser, pairs: list[tuple[str, str]], schema: Schema) -> dict[str, Any] | None:
    """Values typed as the schema says; the client checks the names."""
    kinds = {feature.name: feature for feature in schema.user_features}
    user: dict[str, Any] = {}
    for name, value in pairs:
        feature = kinds.get(name)
        integer = feature is not None and feature.values == "integer"
        number = feature is not None and feature.kind == "number"
        try:
            user[name] = _integer(value) if integer else float(value) if number else value
        except ValueError:
            parser.error(f"argument --user: {name}: got {value!r}, expected {'an integer' if integer else 'a number'}")
    return user or None


def _integer(text: str) -> int:
    """A category of integers; of a column of booleans it is 1 or 0."""
    return {"true": 1, "false": 0}[text.lower()] if text.lower() in ("true", "false") else int(text)


def _json(value: Any) -> str:
    """JSON as it is defined: null for what is not finite."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: finite(each) for name, each in part.items()}
        if isinstance(part, list | tuple):
            return [finite(each) for each in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False)


def _as_json(result: Retrieval | Ranking) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "hits": [asdict(hit) for hit in result],
        "version": result.version,
        "latency_ms": result.latency * 1e3,
    }
    if isinstance(result, Ranking):
        return {**answer, "unknown": result.unknown.tolist()}
    return {**answer, "stats": asdict(result.stats)}


def _explained(explanation: Explanation) -> dict[str, Any]:
    return {
        "item_id": explanation.item_id,
        "outcome": explanation.outcome,
        "reasons": explanation.reasons,
        "k": explanation.k,
        "position": explanation.position,
        "score": explanation.score,
        "kth_score": explanation.kth_score,
        "gap": explanation.gap,
        "failing": [str(part) for part in explanation.failing],
        "probes": explanation.probes,
        "candidates": explanation.candidates,
        "certain": explanation.certain,
        "version": explanation.version,
        "text": str(explanation),
    }


def _table(result: Retrieval | Ranking) -> str:
    tasks = result.task_names if len(result.task_names) > 1 else ()
    lines = [["", "item", "score", *tasks]]
    for place, hit in enumerate(result, start=1):
        lines.append([str(place), str(hit.item_id), _number(hit.score), *(_number(hit.tasks[name]) for name in tasks)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*shown, _summary(result)])


def _number(value: float) -> str:
    """Four decimals, or four digits of what is smaller: probabilities of rare events."""
    return f"{value:.4f}" if abs(value) >= 0.1 or value == 0 else f"{value:.4g}"


def _summary(result: Retrieval | Ranking) -> str:
    took = f"{result.latency * 1e3:.2f} ms"
    if isinstance(result, Ranking):
        unknown = f"; unknown: {', '.join(map(str, result.unknown.tolist()))}" if len(result.unknown) else ""
        return f"{result.count} items ranked in {took}{unknown}"
    stats = result.stats
    return (
        f"{result.count} results in {took}: {stats.rows_passing:,} items pass, "
        f"{stats.rows_scanned:,} scanned in {stats.clusters_probed:,} clusters{', exact' if stats.exact else ''}"
    )
