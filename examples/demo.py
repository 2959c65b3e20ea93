"""Eight prompts, many preferences, one batch: starts a real server with PAD and shows its answers.

    make demo        (or: python examples/demo.py [--base NAME] [--prompt TEXT] [--beta B] [--own SENTENCE])

Starts `pad-vllm serve` on a free port and sends all requests at once through the OpenAI client: unguided,
with an instruction in the prompt, guided by weights and, on a base whose adapter has them, by learned
prefixes. Prints the first prompt's answers and the mean scores of all eight; streams one answer, times guided
against unguided requests, sends an invalid request on purpose, stops the server, and colours one answer by
the reward of each token. With --own, or if you type a sentence at the
terminal: trains a dimension of your own from that sentence in minutes, and shows an answer guided by it.
Exits 1 if a step failed, or if guidance by a dimension moves its mean score over the eight prompts the wrong
way, where the instruction in the prompt moves it the right way.
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
NAME = "demo"  # of the served model
PROMPT = "What should I know before I get a dog?"
OTHER_PROMPTS = (
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
    "friendly": ("personal", 1),  # first and second person pronouns
    "formal": ("simple", -1),  # long words, long sentences
}
"""Dimension -> (lexical scorer, 1 if guidance has to raise its score, -1 if it has to lower it)."""

STUCK_AFTER_S = 300  # a start that logs nothing for so many seconds is stuck
console = Console(width=100)


class DemoError(RuntimeError):
    """A step of the demo failed."""


def free_port() -> int:
    """A TCP port that no process uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def server(log: Path, adapter: str = "demo", *flags: str, base: str = MODEL) -> Iterator[str]:
    """Starts a server, gives its base URL, and stops its whole process group at the end.

    Args:
        log: File for the server's output.
        adapter: Folder of the adapter, or `demo`.
        flags: More flags of `pad-vllm serve`.
        base: The model that answers.

    Raises:
        DemoError: The server does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm", "serve", base, "--adapter", adapter, *flags]
    command += [
        "--served-model-name",
        NAME,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--max-model-len",
        "1024",
    ]
    # float32, because in bfloat16 an answer may depend on the other requests of its batch, and answers are
    # compared here. Eager, because the first start of a compiled server takes minutes.
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
        stop_server(process)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Waits until a server answers.

    Args:
        process: The server.
        url: Its health check.
        log: File with its output; its last line is shown.

    Raises:
        DemoError: The server ended, or logged nothing for STUCK_AFTER_S seconds.
    """
    start = last_change = time.monotonic()
    size = 0
    with console.status("starting the server ...") as status:
        while process.poll() is None and time.monotonic() - last_change < STUCK_AFTER_S:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):  # noqa: S310
                console.print(f"server ready after {time.monotonic() - start:.0f} s")
                return
            time.sleep(1)
            if log.stat().st_size > size:
                last_change, size = time.monotonic(), log.stat().st_size
                lines = log.read_text(errors="replace").splitlines()
                status.update(f"starting the server: {escape(lines[-1][:80])}")
    ended = process.poll() is not None
    problem = "ended" if ended else f"logged nothing for {STUCK_AFTER_S} s"
    raise DemoError(f"the server {problem}; its log ends:\n" + log.read_text()[-3000:])


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Ends the server's process group, by force after 30 seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Variant:
    """One way to answer all prompts: by an instruction in the prompt, by weights, or unguided."""

    name: str  # in the printed table
    instruction: str = ""
    weights: str | None = None  # pad_weights; None: unguided
    prefix: str | None = None  # a learned prefix's name, at the server's default strength

    def request(self, prompt: str, beta: float) -> dict[str, Any]:
        """The request for an answer to `prompt` of up to 48 tokens."""
        text = f"{prompt}\n\n{self.instruction}" if self.instruction else prompt
        request = chat_request(text, self.weights, beta, 48)
        if self.prefix is not None:
            request["extra_body"] = {"vllm_xargs": {"pad_preference": self.prefix}}
        return request


def variants(config: AdapterConfig) -> list[Variant]:
    """Unguided; each dimension by its instruction, if it has one; each guided, by weights and by its learned
    prefix, if it has one; two at once; one opposite.
    """
    instructions, names = instructions_of(config), config.dimensions
    prefixes = () if config.prefixes is None else config.prefixes.digests
    pair = f"{names[0]}=1,{names[1]}=1"
    return [
        Variant("unguided"),
        *(Variant(f"told {name}", instructions[name]) for name in names if name in instructions),
        *(Variant(f"{name}=1", weights=f"{name}=1") for name in names),
        *(Variant(f"prefix {name}", prefix=name) for name in names if name in prefixes),
        Variant(pair, weights=pair),
        Variant(f"{names[0]}=-1", weights=f"{names[0]}=-1"),
    ]


def chat_request(
    prompt: str, weights: str | None, beta: float, tokens: int = 100
) -> dict[str, Any]:
    """Arguments of the OpenAI client's `chat.completions.create`.

    Args:
        prompt: The user's turn.
        weights: pad_weights; None: an unguided request.
        beta: pad_beta of a guided request.
        tokens: Most tokens of the answer.

    Returns:
        Keyword arguments, with greedy decoding.
    """
    request: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
    }
    if weights is not None:
        request["extra_body"] = {"vllm_xargs": {"pad_weights": weights, "pad_beta": beta}}
    return request


async def send_all(client: AsyncOpenAI, requests: list[dict[str, Any]]) -> tuple[list[Any], float]:
    """Sends all requests at once: (their responses, seconds until the last one)."""
    start = time.perf_counter()
    responses = await asyncio.gather(*(client.chat.completions.create(**r) for r in requests))
    return responses, time.perf_counter() - start


async def stream(client: AsyncOpenAI, request: dict[str, Any]) -> str:
    """Streams an answer to the console; returns its text."""
    text = ""
    async for chunk in await client.chat.completions.create(**request, stream=True):
        piece = chunk.choices[0].delta.content or ""
        text += piece
        console.print(piece, end="", style="cyan", highlight=False)
    console.print()
    return text


def print_answers(answers: dict[str, str]) -> None:
    """answers: name of the variant -> text."""
    table = Table(show_lines=True)
    table.add_column("asked for")
    table.add_column("answer", ratio=1)
    for name, text in answers.items():
        table.add_row(name, text.strip())
    console.print(table)


def require_moved(texts: dict[str, list[str]], dimensions: tuple[str, ...]) -> None:
    """Prints each dimension's mean score over all prompts: unguided, instructed, guided.

    texts: name of the variant -> answers. Raises DemoError where guidance moved a score the wrong way.
    """
    table = Table(title="mean over eight prompts")
    for column in ("dimension", "scorer", "unguided", "told", "guided", "learned prefix"):
        table.add_column(column)
    wrong = []
    for name in dimensions:
        if name not in CHECKS:
            continue
        scorer, sign = CHECKS[name]
        means = [
            statistics.fmean(lexical_scores(text, (scorer,))[0] for text in texts[variant])
            if variant in texts
            else None
            for variant in ("unguided", f"told {name}", f"{name}=1", f"prefix {name}")
        ]
        cells = ("" if value is None else f"{value:.2f}" for value in means)
        table.add_row(name, f"{'more' if sign > 0 else 'less'} {scorer}", *cells)
        unguided, instructed, *guided = means
        assert unguided is not None
        if instructed is not None and sign * (instructed - unguided) <= 0:
            continue  # of this base the scorer says nothing: its instructed answers go the other way too
        if any(value is not None and sign * (value - unguided) <= 0 for value in guided):
            wrong.append(name)
    console.print(table)
    if wrong:
        raise DemoError(f"guidance did not move these their way: {', '.join(wrong)}")


async def throughput(client: AsyncOpenAI, all_weights: list[str], beta: float) -> dict[str, float]:
    """Tokens per second of unguided and guided batches of the same size, the better of two rounds.

    Args:
        client: Client of the server.
        all_weights: pad_weights of each guided request.
        beta: Strength of the guided requests.

    Returns:
        "unguided" and "guided" -> tokens per second.
    """
    best = {"unguided": 0.0, "guided": 0.0}
    for turn in range(2):
        for kind in ("unguided", "guided"):
            weights = [w if kind == "guided" else None for w in all_weights]
            # Prompts differ in every round, so that no request finds another's prefix in the cache.
            requests = [
                chat_request(f"{turn} {kind} {i}: {PROMPT}", w, beta, 32)
                for i, w in enumerate(weights)
            ]
            for request in requests:
                request.setdefault("extra_body", {})["ignore_eos"] = True
            responses, seconds = await send_all(client, requests)
            tokens = sum(response.usage.completion_tokens for response in responses)
            best[kind] = max(best[kind], tokens / seconds)
    return best


async def send_and_print(
    url: str, prompt: str, beta: float, config: AdapterConfig
) -> tuple[str, str]:
    """Sends all requests of the demo to a server and prints and checks the answers.

    Args:
        url: The server's base URL.
        prompt: First of the eight prompts.
        beta: Strength of the guided requests.
        config: Config of the adapter that the server has.

    Returns:
        (pad_weights of a guided answer to `prompt`, the answer).

    Raises:
        DemoError: An answer is not what it has to be.
    """
    client = AsyncOpenAI(base_url=url, api_key="none")
    all_variants, prompts = variants(config), (prompt, *OTHER_PROMPTS)
    console.print(f"\n{len(prompts) * len(all_variants)} requests at once, beta {beta:g}")
    requests = [variant.request(text, beta) for variant in all_variants for text in prompts]
    responses, _ = await send_all(client, requests)
    answers = [response.choices[0].message.content for response in responses]
    size = len(prompts)
    texts = {v.name: answers[i * size : (i + 1) * size] for i, v in enumerate(all_variants)}
    console.print(f"\n[bold]{prompt}[/bold]")
    print_answers({name: row[0] for name, row in texts.items()})
    guided_variants = [v for v in all_variants if v.weights or v.prefix]
    unchanged = [v.name for v in guided_variants if texts[v.name][0] == texts["unguided"][0]]
    if unchanged:
        raise DemoError(f"these preferences changed nothing: {', '.join(unchanged)}")
    require_moved(texts, config.dimensions)

    guided = guided_variants[0]
    console.print(f"\nthe same for '{guided.weights}', streamed:")
    if await stream(client, guided.request(prompt, beta)) != texts[guided.name][0]:
        raise DemoError("the streamed answer is not the one of the batch")

    all_weights = [variant.weights for variant in guided_variants if variant.weights]
    speed = await throughput(client, all_weights, beta)
    console.print(
        f"\n{len(all_weights)} requests at once: unguided {speed['unguided']:.0f} tokens/s, guided "
        f"{speed['guided']:.0f} tokens/s on this server, which is not compiled"
    )
    await require_refusal(client, prompt, beta)
    return guided.weights or "", texts[guided.name][0]


async def require_refusal(client: AsyncOpenAI, prompt: str, beta: float) -> None:
    """Sends a request with an unknown dimension, and prints the refusal.

    Args:
        client: Client of the server.
        prompt: The user's turn.
        beta: Strength.

    Raises:
        DemoError: The server answered.
    """
    try:
        await client.chat.completions.create(**chat_request(prompt, "kindness=1", beta))
    except BadRequestError as error:
        console.print(f"\na preference this adapter does not have: HTTP 400\n  {error.message}")
    else:
        raise DemoError("an unknown preference was not refused")


def print_coloured_answer(base: str, prompt: str, beta: float, weights: str, answer: str) -> None:
    """Prints a guided answer, each token coloured by its reward.

    Args:
        base: The model that answered.
        prompt: The user's turn.
        beta: Strength that the answer was guided with.
        weights: pad_weights of the answer.
        answer: Its text.
    """
    # They import PyTorch, which is not needed before the server has ended.
    from pad_vllm.steering.token_explanation import ExplanationRequest, explain_answer

    request = ExplanationRequest(
        adapter=resolve_adapter("demo", base),
        base=base,
        prompt=prompt,
        weights=weights,
        beta=beta,
        answer=answer,
    )
    explained = explain_answer(request)
    console.print(
        f"\n'{weights}' once more (green: above the mean reward, red: below; "
        "underlined: not the base's most likely token):"
    )
    console.print(coloured_answer(explained))


def train_own_dimension(base: str, instruction: str) -> None:
    """Trains a dimension `own` from an instruction, and shows an answer guided by it."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "own")
        command = [sys.executable, "-m", "pad_vllm", "train", base, "--teacher", "prompt"]
        command += ["--dimension", f"own={instruction}", "--answers", "60", "--out", out]
        start = time.monotonic()
        subprocess.run(command, check=True)
        console.print(f"\ntrained in {time.monotonic() - start:.0f} s")
        command = [sys.executable, "-m", "pad_vllm", "explain", out, PROMPT, "--base", base]
        subprocess.run([*command, "--weights", "own=1"], check=True)


def own_instruction(given: str | None) -> str:
    """`given`, otherwise the sentence that the user types at a terminal; empty for none."""
    if given is not None or "CI" in os.environ or not sys.stdin.isatty():
        return given or ""
    console.print("\nA dimension of your own? Say in a sentence how to answer (Enter for none):")
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def main() -> int:
    """Runs the demo; 0 if all steps succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=MODEL, help="a model that an adapter ships for")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--beta", type=float, help="strength of guidance (default: the adapter's)")
    parser.add_argument(
        "--own", metavar="SENTENCE", help="instruction of a new dimension: how to answer"
    )
    args = parser.parse_args()
    # By default it would end this process alone, and the server, in a session of its own, would go on.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    start = time.monotonic()
    config = read_config(resolve_adapter("demo", args.base))
    beta = config.beta if args.beta is None else args.beta
    flags = [] if config.prefixes is None else ["--instructions"]
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            server(Path(folder) / "server.log", "demo", *flags, base=args.base) as url,
        ):
            weights, answer = asyncio.run(send_and_print(url, args.prompt, beta, config))
        console.print("\nthe server is stopped")
        print_coloured_answer(args.base, args.prompt, beta, weights, answer)
        console.print(f"\ndemo finished in {time.monotonic() - start:.0f} s")
        if instruction := own_instruction(args.own):
            train_own_dimension(args.base, instruction)
    except (DemoError, subprocess.CalledProcessError) as error:
        console.print(f"[red]demo failed:[/red] {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
