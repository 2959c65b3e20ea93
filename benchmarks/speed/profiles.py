"""What does it cost a request to name a user, and is the answer that of the user's weights?

    python -m benchmarks.speed.profiles --out benchmarks/results/profiles.json

One server over a database of 10,000 users. Waves of 200 requests at once take turns: with explicit weights;
with random users; with random users while choices are posted. Greedy, float32: afterwards each answer of a
user is compared with the one of the explicit weights of its profile's version. Admission alone, without an
engine, is timed in this process: of a request with weights and of one with a user, also while a thread posts
choices.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import numpy as np
import sqlalchemy as sa

from benchmarks.common import arguments, timed_engines
from benchmarks.common.vllm_server import vllm_server
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.config import PADConfig
from pad_vllm.profiles import tables
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile import NamedChoice, weights_text
from pad_vllm.serving.launch.serve_arguments import serve_argv

WAYS = ("weights", "users", "users, choices posted")
"""Of the requests of a wave."""

PROMPT = "Write a short note to a friend who moved away."


class TimedAnswer(NamedTuple):
    """One answer over HTTP."""

    seconds: float
    text: str
    user: str | None
    version: int | None


def user_name(number: int) -> str:
    """Of one of the users."""
    return f"user {number}"


def write_users(database: Path, dimensions: Sequence[str], count: int) -> dict[str, str]:
    """A database of users who stated random weights -> `pad_weights` of each."""
    rng = random.Random(0)
    stated = [{name: round(rng.uniform(-1, 1), 2) for name in dimensions} for _ in range(count)]
    rows = [
        {
            "name": user_name(number),
            "evidence": 1,
            "version": 1,
            "stated": weights,
            "weights": weights,
            "intervals": {},
            "choices": 0,
            "change": number + 1,
        }
        for number, weights in enumerate(stated)
    ]
    opened = Database(str(database))
    with opened.writing() as connection:
        connection.execute(sa.insert(tables.users), rows)
        connection.execute(sa.update(tables.changes).values(number=count))
    opened.close()
    return {user_name(number): weights_text(weights) for number, weights in enumerate(stated)}


class Client:
    """Asks one server."""

    def __init__(self, url: str, tokens: int, at_once: int) -> None:
        self._tokens = tokens
        # A connection a request: uvicorn closes those that idle, perhaps as one is used again.
        limits = httpx.Limits(max_connections=at_once + 8, max_keepalive_connections=0)
        self._http = httpx.Client(base_url=url, timeout=600, limits=limits)
        self.weights: dict[tuple[str, int], str] = {}
        """(user, version) -> `pad_weights`, of versions that posted choices made."""

    def ask(self, arguments: dict[str, Any]) -> TimedAnswer:
        """One answer."""
        body = {
            "model": "base",
            "messages": [{"role": "user", "content": PROMPT}],
            "temperature": 0,
            "max_tokens": self._tokens,
            "ignore_eos": True,
            "vllm_xargs": arguments,
        }
        begin = time.perf_counter()
        answer = self._http.post("/v1/chat/completions", json=body)
        seconds = time.perf_counter() - begin
        said = answer.raise_for_status().json()
        field = said["pad"]
        text = said["choices"][0]["message"]["content"]
        return TimedAnswer(seconds, text, field.get("user"), field.get("profile_version"))

    def post_choice(self, user: str, weights: dict[str, float]) -> None:
        """A thumb down on an answer under these weights."""
        body = {"answer": "a", "weights": weights, "liked": False}
        answer = self._http.post(f"/v1/pad/users/{user}/choices", json=body)
        profile = answer.raise_for_status().json()
        self.weights[user, profile["version"]] = profile["pad_weights"]


@contextmanager
def posting(act: Callable[[], None], pause_s: float) -> Iterator[list[int]]:
    """Acts in a thread, over and over, while the block runs; the list has the number of acts."""
    count, stopped = [0], threading.Event()

    def run() -> None:
        while not stopped.wait(pause_s):
            act()
            count[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield count
    finally:
        stopped.set()
        thread.join()


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4)}


def serve_waves(
    client: Client, first: dict[str, str], dimensions: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """Waves of every way in turns, and whether the answers are those of the weights.

    Args:
        client: of the server.
        first: user -> `pad_weights` of version 1.
        dimensions: of the adapter.
        args: of the command line.
    """
    rng, names = random.Random(1), list(first)
    client.weights |= {(user, 1): text for user, text in first.items()}
    answers: dict[str, list[TimedAnswer]] = {way: [] for way in WAYS}
    posted = 0
    with ThreadPoolExecutor(args.at_once) as pool:
        for number in range(args.rounds + 1):  # the first one warms up
            for way in WAYS:
                users = rng.choices(names, k=args.at_once)
                asked = [
                    {"pad_weights": first[user]} if way == "weights" else {"pad_user": user}
                    for user in users
                ]
                likely = iter(users * 100)

                def post(likely: Iterator[str] = likely) -> None:
                    client.post_choice(next(likely), {rng.choice(dimensions): 1.0})

                if way.endswith("posted"):
                    with posting(post, args.pause) as count:
                        wave = list(pool.map(client.ask, asked))
                    posted += count[0]
                else:
                    wave = list(pool.map(client.ask, asked))
                answers[way] += wave if number else []
        named = [one for way in WAYS[1:] for one in answers[way]]
        keys = list({(one.user, one.version) for one in named})
        explicit = pool.map(lambda key: client.ask({"pad_weights": client.weights[key]}).text, keys)
        expected = dict(zip(keys, explicit, strict=True))
    return {
        "latency": {way: quantiles([one.seconds for one in answers[way]]) for way in WAYS},
        "posted": posted,
        "answers_of_users": len(named),
        "of_versions_after_posts": sum(one.version != 1 for one in named),
        "differ_from_explicit": sum(one.text != expected[one.user, one.version] for one in named),
        "different_texts": len({one.text for one in named}),
    }


def time_admission(
    database: Path, adapter: str, first: dict[str, str], requests: int
) -> dict[str, dict[str, float]]:
    """Quantiles of the time that admission takes, by what a request names.

    Args:
        database: of the users.
        adapter: folder.
        first: user -> `pad_weights`.
        requests: how many of each.
    """
    from pad_vllm.serving.frontend.admission import Admission
    from pad_vllm.serving.frontend.profile_admission import open_profiles
    from pad_vllm.serving.start.served_adapters import served_limits
    from pad_vllm.vllm_api.vllm_names import SamplingParams

    pad = PADConfig(adapter, profiles=str(database))
    limits = served_limits(pad)
    profiles = open_profiles(pad, limits.dimensions)
    model = SimpleNamespace(served_model_name="base")
    registry: Any = SimpleNamespace(limits=limits)
    admission = Admission(registry, model, profiles=profiles)
    names, rng = list(first), random.Random(2)

    def timed(arguments: dict[str, Any]) -> float:
        params = SamplingParams(extra_args=arguments)
        begin = time.perf_counter()
        admission(params)
        return time.perf_counter() - begin

    def post() -> None:
        choice = NamedChoice({rng.choice(limits.dimensions): 1.0}, 0.0)
        profiles.store.add_choice(rng.choice(names), choice)

    users = rng.choices(names, k=requests)
    result = {
        "weights": quantiles([timed({"pad_weights": first[user]}) for user in users]),
        "user": quantiles([timed({"pad_user": user}) for user in users]),
        "unknown user": quantiles([timed({"pad_user": f"no {user}"}) for user in users]),
    }
    with posting(post, 0.0):
        result["user, choices posted"] = quantiles([timed({"pad_user": user}) for user in users])
    profiles.cache.stop()
    return result


def table(result: dict[str, Any]) -> list[str]:
    """Markdown. Waves of one round are left out: the first warms the server for the others."""
    names = ("p50_ms", "p99_ms", "cpu_p50_ms", "cpu_p99_ms")
    lines = [
        "| requests | p50 ms | p99 ms | CPU p50 | CPU p99 |",
        "| --- | --- | --- | --- | --- |",
    ]
    timed = {"served": result["served"]["latency"], "admission": result["admission"]}
    if result["rounds"] == 1:
        del timed["served"]
    for title, rows in timed.items():
        for way, row in rows.items():
            cells = [f"{row[name]:.4g}" if name in row else "" for name in names]
            lines.append(f"| {title}: {way} | {' | '.join(cells)} |")
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between posted choices")
    parser.add_argument("--requests", type=int, default=10_000, help="of the timed admission")
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    dimensions = read_config(adapter).dimensions
    with tempfile.TemporaryDirectory(prefix="pad_profiles_") as folder:
        database = Path(folder) / "users.db"
        first = write_users(database, dimensions, args.users)
        flags = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
        flags += ["--max-num-seqs", str(args.at_once), "--served-model-name", "base"]
        flags += ["--host", "127.0.0.1", "--disable-uvicorn-access-log"]
        argv = serve_argv(base, adapter, flags, profiles=str(database))
        with vllm_server(argv) as url:
            served = serve_waves(Client(url, args.tokens, args.at_once), first, dimensions, args)
        admission = time_admission(database, adapter, first, args.requests)
    result = {
        "command": arguments.command_line(),
        "versions": timed_engines.machine_and_versions(),
        "users": args.users,
        "at_once": args.at_once,
        "rounds": args.rounds,
        "tokens": args.tokens,
        "served": served,
        "admission": admission,
    }
    arguments.print_and_write(args, {**result, "table": table(result)})


if __name__ == "__main__":
    main()
