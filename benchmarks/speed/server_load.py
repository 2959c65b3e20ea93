"""How long do users of a server wait? vLLM's own `vllm bench serve` against plain vLLM and against PAD.

    python -m benchmarks.speed.server_load --out online.json --picture online.png

One server of each lives side by side, and they take turns: plain vLLM; PAD with no request guided, every
second request guided, all guided. Random prompts of one length, answers of one length, requests in a Poisson
stream at several rates. In "half" two clients at half the rate run at once, one guided; the result is of
both. TTFT: time to first token; ITL: between two tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from matplotlib.figure import Figure

from benchmarks.common import arguments, timed_engines
from benchmarks.common.vllm_server import VLLM_PROGRAM, vllm_server
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.serving.launch.serve_arguments import serve_argv

WAYS = ("plain", "PAD, nobody", "PAD, half", "PAD, everybody")
"""Of serving, by the share of requests that are guided."""

_SUMMED = ("completed", "failed", "output_throughput")
_AVERAGED = ("median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms")


def guided_clients(way: str) -> tuple[bool, ...]:
    """Whether each of the clients that run at once is guided."""
    return {"PAD, half": (True, False), "PAD, everybody": (True,)}.get(way, (False,))


def start_client(
    url: str,
    base: str,
    args: argparse.Namespace,
    *,
    rate: float,
    requests: int,
    extra_body: dict[str, Any],
    out: Path,
) -> subprocess.Popen[bytes]:
    """Start `vllm bench serve`.

    Args:
        url: Of the server.
        base: Folder of the base, for its tokenizer.
        args: With --prompt and --tokens.
        rate: Requests a second.
        requests: How many it sends.
        extra_body: Further fields of every request; none where empty.
        out: The file that its result is written to.
    """
    argv = [
        *("bench", "serve", "--backend", "openai", "--base-url", url, "--model", base),
        *("--served-model-name", "base", "--endpoint", "/v1/completions"),
        *("--dataset-name", "random", "--random-input-len", str(args.prompt)),
        *("--random-output-len", str(args.tokens), "--ignore-eos", "--temperature", "0"),
        *("--num-prompts", str(requests), "--request-rate", str(rate), "--seed", "0"),
        *("--percentile-metrics", "ttft,itl", "--metric-percentiles", "99", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(out.parent), "--result-filename", out.name),
        *(("--extra-body", json.dumps(extra_body)) if extra_body else ()),
    ]
    return subprocess.Popen([*VLLM_PROGRAM, *argv], stdout=subprocess.DEVNULL)


def measure_once(
    way: str,
    url: str,
    base: str,
    args: argparse.Namespace,
    *,
    rate: float,
    guidance: dict[str, Any],
) -> dict[str, Any]:
    """One way of serving at one rate.

    Args:
        way: One of WAYS.
        url: Of its server.
        base: Folder of the base.
        args: The command line.
        rate: Requests a second, of all clients together.
        guidance: vllm_xargs of a guided request.

    Returns:
        Counts and throughput added up over the clients, latencies averaged.
    """
    guided = guided_clients(way)
    count = len(guided)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.json" for number in range(count)]
        clients = [
            start_client(
                url,
                base,
                args,
                rate=rate / count,
                requests=args.requests // count,
                extra_body={"vllm_xargs": guidance} if is_guided else {},
                out=file,
            )
            for is_guided, file in zip(guided, files, strict=True)
        ]
        if any(client.wait() for client in clients):
            raise SystemExit(f"`vllm bench serve` failed: {way} at {rate:g} requests a second")
        results = [json.loads(file.read_text()) for file in files]
    record = {name: sum(result[name] for result in results) for name in _SUMMED}
    return record | {name: statistics.mean(r[name] for r in results) for name in _AVERAGED}


def summarize(records: Sequence[dict[str, Any]], ways: Sequence[str]) -> list[dict[str, Any]]:
    """A row a way and rate: medians over the rounds; the throughput's ratio is to plain in the same round."""
    rows = []
    for rate in dict.fromkeys(r["rate"] for r in records):
        plain = [r for r in records if r["rate"] == rate and r["way"] == "plain"]
        for way in ways:
            rounds = [r for r in records if r["rate"] == rate and r["way"] == way]
            row = {"way": way, "rate": rate}
            for name in rounds[0]:
                if name not in ("way", "rate"):
                    row[name] = round(statistics.median(r[name] for r in rounds), 2)
            ratios = [
                a["output_throughput"] / b["output_throughput"]
                for a, b in zip(rounds, plain, strict=True)
            ]
            row["throughput_ratio"] = round(statistics.median(ratios), 3)
            rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown, a line a way and rate."""
    lines = [
        "| requests/s | server | tokens/s | of plain | TTFT, median (99%) | ITL, median (99%) |",
        "| ---: | --- | ---: | ---: | --- | --- |",
    ]
    lines += [
        f"| {r['rate']:g} | {r['way']} | {r['output_throughput']:.0f} | {r['throughput_ratio']:.2f} | "
        f"{r['median_ttft_ms']:.0f} ms ({r['p99_ttft_ms']:.0f}) | "
        f"{r['median_itl_ms']:.0f} ms ({r['p99_itl_ms']:.0f}) |"
        for r in rows
    ]
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Latency against throughput: where a line turns up, the server is full."""
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, name in zip(panels, ("median_ttft_ms", "median_itl_ms"), strict=True):
        for way in dict.fromkeys(r["way"] for r in rows):
            line = [r for r in rows if r["way"] == way]
            x, y = [r["output_throughput"] for r in line], [r[name] for r in line]
            panel.plot(x, y, "o-", markersize=4, label=way)
        panel.set_xlabel("tokens/s")
        panel.set_ylabel(name.replace("_", " ").replace(" ms", ", ms"))
    panels[0].legend(fontsize=8)
    figure.savefig(path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--requests", type=int, default=32, help="of each way and rate")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    config = read_config(adapter)
    guidance = {"pad_weights": ",".join(f"{name}=1" for name in config.dimensions)}
    flags = ["--max-model-len", str(args.prompt + args.tokens + 32), "--dtype", args.dtype]
    flags += ["--served-model-name", "base", "--disable-uvicorn-access-log"]
    flags += ["--no-enable-prefix-caching", *(["--enforce-eager"] if args.eager else [])]
    records = []
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(vllm_server(["serve", base, *flags]))
        pad = stack.enter_context(vllm_server(serve_argv(base, adapter, flags)))
        for number in range(args.rounds + 1):  # the first round warms up
            for rate in args.rates:
                for way in args.ways:
                    url = plain if way == "plain" else pad
                    record = measure_once(way, url, base, args, rate=rate, guidance=guidance)
                    if number:
                        records.append({"way": way, "rate": rate, **record})
    rows = summarize(records, args.ways)
    result = {
        "command": arguments.command_line(),
        "backbone": config.backbone.name,
        "fork_layer": config.fork_layer,
        "compiled": not args.eager,
        "versions": timed_engines.machine_and_versions(),
        "rows": rows,
        "records": records,
        "table": table(rows),
    }
    arguments.print_and_write(args, result, partial(draw, rows))


if __name__ == "__main__":
    main()
