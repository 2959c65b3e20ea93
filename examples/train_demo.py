"""All steps of training on a small data set: sample, score, train both stages, evaluate, serve two requests.

    make train-demo        (or: python examples/train_demo.py [--folder DIR])

Every step is a `pad-vllm` command, printed before it runs. With --folder a second call goes on where the
first stopped. So little data makes an adapter that works, but not a good one. Exits 1 if a step failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo import DemoError, chat_request, console, server
from openai import AsyncOpenAI

MODEL = "smollm2-135m"
SCORERS = ("positive", "brief", "simple", "personal")
QUESTIONS = (
    "What should I know about {}?",
    "Tell me a story about {}.",
    "Why do people care about {}?",
    "Give me advice on {}.",
    "What are the good and the bad sides of {}?",
    "Explain {} to a child.",
)
TOPICS = (
    "dogs", "learning to cook", "living in a city", "the sea", "night shifts", "old friends",
    "growing tomatoes", "train journeys", "video games", "losing a match", "chess", "winter",
    "moving to another country", "the first day at school", "public libraries", "running",
    "sharing a flat", "the moon", "telling jokes", "saving money",
)  # fmt: skip
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    "TOKENIZERS_PARALLELISM": "false",
}


def step(*arguments: str) -> None:
    """Runs one `pad-vllm` command, with its output on the console. Raises DemoError if it fails."""
    start = time.monotonic()
    console.rule(f"pad-vllm {shlex.join(arguments)}", align="left")
    command = [sys.executable, "-m", "pad_vllm", *arguments]
    code = subprocess.run(command, env={**ENVIRONMENT, **os.environ}, check=False).returncode
    console.print(f"[dim]{time.monotonic() - start:.0f} s[/dim]")
    if code:
        raise DemoError(f"pad-vllm {arguments[0]} ended with exit code {code}")


def write_prompts(path: Path) -> None:
    """Writes every question about every topic, as JSONL."""
    with path.open("w") as file:
        for topic, question in itertools.product(TOPICS, QUESTIONS):
            file.write(json.dumps({"prompt": question.format(topic)}) + "\n")


async def ask(url: str) -> None:
    """Sends one prompt with two opposite preferences. Raises DemoError if the answers are equal."""
    client = AsyncOpenAI(base_url=url, api_key="none")
    prompt = "What should I know before I get a cat?"
    answers = []
    for weights in ("positive=1", "positive=-1"):
        request = chat_request(prompt, weights, beta=1.0, tokens=60)
        response = await client.chat.completions.create(**request)
        answers.append(response.choices[0].message.content)
        console.print(f"\n[bold]{weights}[/bold]: {answers[-1]}", highlight=False)
    if answers[0] == answers[1]:
        raise DemoError("two opposite preferences gave the same answer")


def run_steps(folder: Path) -> None:
    """Runs all steps, with their files in `folder`."""
    prompts, samples, scored, adapter = (
        folder / name for name in ("prompts.jsonl", "samples.jsonl", "scored.jsonl", "adapter")
    )
    write_prompts(prompts)
    step("sample", MODEL, "--prompts", str(prompts), "--out", str(samples), "--max-tokens", "64")
    step("score", str(samples), *SCORERS, "--out", str(scored))
    data = ("--data", f"jsonl={scored}")
    step("train", MODEL, *data, "--out", str(adapter), "--dtype", "bfloat16", "--epochs", "1")
    step("evaluate", str(adapter), "--base", MODEL)
    console.rule("pad-vllm serve", align="left")
    with server(folder / "server.log", str(adapter), "--enforce-eager") as url:
        asyncio.run(ask(url))


def main() -> int:
    """Runs the demo; 0 if all steps succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep everything here (default: temporary)")
    folder = parser.parse_args().folder
    start = time.monotonic()
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            run_steps(folder)
        else:
            with tempfile.TemporaryDirectory() as temporary:
                run_steps(Path(temporary))
    except DemoError as error:
        console.print(f"[red]train-demo failed:[/red] {error}")
        return 1
    console.print(f"\ntrain-demo finished in {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
