"""Eight prompts, many preferences, one batch: starts a real server with PAD and shows what comes back.

    make demo        (or: python examples/demo.py [--prompt TEXT] [--beta B] [--own SENTENCE])

Starts `pad-vllm serve` on a free port, sends the requests together through the OpenAI client: unguided, asked
for in words, and guided. Shows the first prompt's answers and what all eight score; streams one, times guided
against unguided, asks for something wrong on purpose, stops the server, colours one answer by what its tokens
earned. With --own, or asked at a terminal: a dimension of your own from one sentence, taught and tried in
minutes. Exits 1 if any step failed, and where a preference does not move its way over the eight prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, BadRequestError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.explain import coloured_answer
from pad_vllm.evaluation.lexical_scorers import lexical_scores
from pad_vllm.steering.comparison_conditions import instructions_of

MODEL = "smollm2-135m"
PROMPT = "What should I know before I get a dog?"
OTHERS = (
    "How do I start running?",
    "Why is the sky blue?",
    "Give me an idea for a birthday party.",
    "Is it hard to learn to play the guitar?",
    "What is inflation?",
    "My flight was cancelled. What can I do?",
    "Describe a walk through a forest.",
)
CHECKS = {
    "positive": ("positive", 1),
    "simple": ("simple", 1),
    "brief": ("brief", 1),
    "personal": ("personal", 1),
    "friendly": ("personal", 1),  # speaks of me and you
    "formal": ("simple", -1),  # long words, long sentences
}
"""Dimension -> a scorer of words that has to rise, or to fall."""

PATIENCE_S = 300  # a start that says nothing for so long is stuck
console = Console(width=100)


class DemoError(RuntimeError):
    """A step of the demo that did not do what it says."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def server(log: Path, adapter: str = "demo", *flags: str) -> Iterator[str]:
    """A running server's base URL; its whole process group is stopped at the end."""
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm", "serve", MODEL, "--adapter", adapter, *flags]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    # In bfloat16 an answer may depend on who shares its batch; here one is compared with another.
    # Uncompiled: a compiled server takes minutes to be there the first time.
    command += ["--max-num-seqs", "16", "--dtype", "float32", "--enforce-eager"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Waits as long as the server lives and its log moves."""
    start = moved = time.monotonic()
    size = 0
    with console.status("starting the server ...") as status:
        while process.poll() is None and time.monotonic() - moved < PATIENCE_S:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):  # noqa: S310
                console.print(f"server ready after {time.monotonic() - start:.0f} s")
                return
            time.sleep(1)
            if log.stat().st_size > size:
                moved, size = time.monotonic(), log.stat().st_size
                lines = log.read_text(errors="replace").splitlines()
                status.update(f"starting the server: {escape(lines[-1][:80])}")
    gone = process.poll() is not None
    what = "ended" if gone else f"said nothing for {PATIENCE_S} s"
    raise DemoError(f"the server {what}; its log ends:\n" + log.read_text()[-3000:])


def stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Wish:
    """One way to ask: in words, by weights, or not at all."""

    name: str
    sentence: str = ""
    weights: str | None = None

    def request(self, prompt: str, beta: float) -> dict[str, Any]:
        text = f"{prompt}\n\n{self.sentence}" if self.sentence else prompt
        return body(text, self.weights, beta, 48)


def wishes(config: AdapterConfig) -> list[Wish]:
    """Unguided; each dimension in words, where a sentence taught it, and guided; two at once; an opposite."""
    told, names = instructions_of(config), config.dimensions
    pair = f"{names[0]}=1,{names[1]}=1"
    return [
        Wish("unguided"),
        *(Wish(f"told {name}", told[name]) for name in names if name in told),
        *(Wish(f"{name}=1", weights=f"{name}=1") for name in names),
        Wish(pair, weights=pair),
        Wish(f"{names[0]}=-1", weights=f"{names[0]}=-1"),
    ]


def body(prompt: str, weights: str | None, beta: float, tokens: int = 100) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
    }
    if weights is not None:
        request["extra_body"] = {"vllm_xargs": {"pad_weights": weights, "pad_beta": beta}}
    return request


async def ask_all(client: AsyncOpenAI, requests: list[dict[str, Any]]) -> tuple[list[Any], float]:
    """All requests at once: the answers and the seconds they took."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(client.chat.completions.create(**r) for r in requests))
    return answers, time.perf_counter() - start


async def stream(client: AsyncOpenAI, request: dict[str, Any]) -> str:
    text = ""
    async for chunk in await client.chat.completions.create(**request, stream=True):
        piece = chunk.choices[0].delta.content or ""
        text += piece
        console.print(piece, end="", style="cyan", highlight=False)
    console.print()
    return text


def show(answers: dict[str, str]) -> None:
    table = Table(show_lines=True)
    table.add_column("asked for")
    table.add_column("answer", ratio=1)
    for name, text in answers.items():
        table.add_row(name, text.strip())
    console.print(table)


def require_moved(texts: dict[str, list[str]], dimensions: tuple[str, ...]) -> None:
    """What all answers score on average. DemoError where guidance moved a dimension the wrong way."""
    table = Table(title="mean over eight prompts")
    for column in ("dimension", "scorer", "unguided", "told", "guided"):
        table.add_column(column)
    wrong = []
    for name in dimensions:
        if name not in CHECKS:
            continue
        scorer, sign = CHECKS[name]
        plain, told, guided = (
            statistics.fmean(lexical_scores(text, (scorer,))[0] for text in texts[way])
            if way in texts
            else None
            for way in ("unguided", f"told {name}", f"{name}=1")
        )
        assert plain is not None
        assert guided is not None
        cells = ("" if value is None else f"{value:.2f}" for value in (plain, told, guided))
        table.add_row(name, f"{'more' if sign > 0 else 'less'} {scorer}", *cells)
        if sign * (guided - plain) <= 0:
            wrong.append(name)
    console.print(table)
    if wrong:
        raise DemoError(f"guidance did not move these their way: {', '.join(wrong)}")


async def throughput(client: AsyncOpenAI, wanted: list[str], beta: float) -> dict[str, float]:
    """Tokens a second of the same batch size, unguided and guided, taking turns."""
    best = {"unguided": 0.0, "guided": 0.0}
    for turn in range(2):
        for kind in ("unguided", "guided"):
            given = [w if kind == "guided" else None for w in wanted]
            # A prompt a turn, so that neither side finds the other's prefix in the cache.
            requests = [
                body(f"{turn} {kind} {i}: {PROMPT}", w, beta, 32) for i, w in enumerate(given)
            ]
            for request in requests:
                request.setdefault("extra_body", {})["ignore_eos"] = True
            answers, seconds = await ask_all(client, requests)
            tokens = sum(answer.usage.completion_tokens for answer in answers)
            best[kind] = max(best[kind], tokens / seconds)
    return best


async def talk(url: str, prompt: str, beta: float, config: AdapterConfig) -> tuple[str, str]:
    """The weights of a guided answer to the prompt, and the answer."""
    client = AsyncOpenAI(base_url=url, api_key="none")
    ways, prompts = wishes(config), (prompt, *OTHERS)
    console.print(f"\n{len(prompts) * len(ways)} requests at once, beta {beta:g}")
    requests = [way.request(one, beta) for way in ways for one in prompts]
    replies, _ = await ask_all(client, requests)
    said = [reply.choices[0].message.content for reply in replies]
    size = len(prompts)
    texts = {way.name: said[i * size : (i + 1) * size] for i, way in enumerate(ways)}
    console.print(f"\n[bold]{prompt}[/bold]")
    show({name: answers[0] for name, answers in texts.items()})
    same = [way.name for way in ways if way.weights and texts[way.name][0] == texts["unguided"][0]]
    if same:
        raise DemoError(f"these preferences changed nothing: {', '.join(same)}")
    require_moved(texts, config.dimensions)

    guided = next(way for way in ways if way.weights)
    console.print(f"\nthe same for '{guided.weights}', streamed:")
    if await stream(client, guided.request(prompt, beta)) != texts[guided.name][0]:
        raise DemoError("the streamed answer is not the one of the batch")

    wanted = [way.weights for way in ways if way.weights]
    speed = await throughput(client, wanted, beta)
    console.print(
        f"\n{len(wanted)} requests at once: unguided {speed['unguided']:.0f} tokens/s, guided "
        f"{speed['guided']:.0f} tokens/s on this server, which is not compiled"
    )

    try:
        await client.chat.completions.create(**body(prompt, "kindness=1", beta))
    except BadRequestError as error:
        console.print(f"\na preference this adapter does not have: HTTP 400\n  {error.message}")
    else:
        raise DemoError("an unknown preference was not refused")
    return guided.weights or "", texts[guided.name][0]


def colour(prompt: str, beta: float, weights: str, answer: str) -> None:
    """What each token of an answer earned."""
    from pad_vllm.steering.token_explanation import (  # PyTorch: not before the server
        ExplanationRequest,
        explain_answer,
    )

    adapter = resolve_adapter("demo")
    read = explain_answer(ExplanationRequest(adapter, MODEL, prompt, weights, beta, answer))
    console.print(
        f"\n'{weights}' once more: green earned, red did not, underlined the base would not say:"
    )
    console.print(coloured_answer(read))


def teach(sentence: str) -> None:
    """A dimension of one's own: taught by its sentence and tried on some questions."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "own")
        command = [sys.executable, "-m", "pad_vllm", "train", MODEL, "--teacher", "prompt"]
        command += ["--dimension", f"own={sentence}", "--answers", "60", "--out", out]
        start = time.monotonic()
        subprocess.run(command, check=True)
        console.print(f"\ntaught in {time.monotonic() - start:.0f} s")


def wish_of(given: str | None) -> str:
    """The reader's sentence; empty for none."""
    if given is not None or "CI" in os.environ or not sys.stdin.isatty():
        return given or ""
    console.print("\nA dimension of your own? Say in a sentence how to answer (Enter for none):")
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--beta", type=float, help="strength; default: the adapter's own")
    parser.add_argument("--own", metavar="SENTENCE", help="a new dimension: how to answer")
    args = parser.parse_args()
    start = time.monotonic()
    config = read_config(resolve_adapter("demo"))
    beta = config.beta if args.beta is None else args.beta
    try:
        with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "server.log") as url:
            weights, answer = asyncio.run(talk(url, args.prompt, beta, config))
        console.print("\nthe server is stopped")
        colour(args.prompt, beta, weights, answer)
        console.print(f"\ndemo finished in {time.monotonic() - start:.0f} s")
        if sentence := wish_of(args.own):
            teach(sentence)
    except (DemoError, subprocess.CalledProcessError) as error:
        console.print(f"[red]demo failed:[/red] {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
