"""What do users of a server wait for? vLLM's own `vllm bench serve` against plain vLLM and against PAD.

    python benchmarks/online.py --out benchmarks/results/online.json --picture benchmarks/results/online.png

One server of each lives side by side, and they take turns: plain vLLM; PAD with nobody guided, every second
request guided, everybody guided. Random prompts of one length, answers of one length, requests in a Poisson
stream at several rates. In "half" two clients at half the rate run at once, one guided; the figures are of
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

import arguments
from matplotlib.figure import Figure
from served import PROGRAM, served
from speed import versions

from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.serving.launch.serve_arguments import serve_argv

WAYS = ("plain", "PAD, nobody", "PAD, half", "PAD, everybody")
_SUMS = ("completed", "failed", "output_throughput")


def traffic(way: str) -> tuple[bool, ...]:
    """Whether each of the clients that run at once is guided."""
    return {"PAD, half": (True, False), "PAD, everybody": (True,)}.get(way, (False,))


def client(
    url: str, base: str, rate: float, requests: int, extra: dict[str, Any], args: Any, out: Path
) -> subprocess.Popen[bytes]:
    """`vllm bench serve`, begun."""
    argv = [
        *("bench", "serve", "--backend", "openai", "--base-url", url, "--model", base),
        *("--served-model-name", "base", "--endpoint", "/v1/completions"),
        *("--dataset-name", "random", "--random-input-len", str(args.prompt)),
        *("--random-output-len", str(args.tokens), "--ignore-eos", "--temperature", "0"),
        *("--num-prompts", str(requests), "--request-rate", str(rate), "--seed", "0"),
        *("--percentile-metrics", "ttft,itl", "--metric-percentiles", "99", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(out.parent), "--result-filename", out.name),
        *(("--extra-body", json.dumps(extra)) if extra else ()),
    ]
    return subprocess.Popen([*PROGRAM, *argv], stdout=subprocess.DEVNULL)


def once(way: str, url: str, base: str, rate: float, args: Any, guidance: dict[str, Any]) -> dict:
    """One way at one rate."""
    guided = traffic(way)
    share = len(guided)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.json" for number in range(share)]
        clients = [
            client(
                url,
                base,
                rate / share,
                args.requests // share,
                {"vllm_xargs": guidance} if one else {},
                args,
                file,
            )
            for one, file in zip(guided, files, strict=True)
        ]
        if any(one.wait() for one in clients):
            raise SystemExit(f"`vllm bench serve` failed: {way} at {rate:g} requests a second")
        found = [json.loads(file.read_text()) for file in files]
    record = {name: sum(one[name] for one in found) for name in _SUMS}
    for name in ("median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms"):
        record[name] = statistics.mean(one[name] for one in found)
    return record


def summary(records: Sequence[dict[str, Any]], ways: Sequence[str]) -> list[dict[str, Any]]:
    """Medians over the rounds, a row a way and rate; the ratio of throughputs to plain in the same round."""
    rows = []
    for rate in dict.fromkeys(r["rate"] for r in records):
        plain = [r for r in records if r["rate"] == rate and r["way"] == "plain"]
        for way in ways:
            own = [r for r in records if r["rate"] == rate and r["way"] == way]
            row = {"way": way, "rate": rate}
            for name in own[0]:
                if name not in ("way", "rate"):
                    row[name] = round(statistics.median(r[name] for r in own), 2)
            ratios = [
                a["output_throughput"] / b["output_throughput"]
                for a, b in zip(own, plain, strict=True)
            ]
            row["throughput_ratio"] = round(statistics.median(ratios), 3)
            rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
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
            own = [r for r in rows if r["way"] == way]
            x, y = [r["output_throughput"] for r in own], [r[name] for r in own]
            panel.plot(x, y, "o-", markersize=4, label=way)
        panel.set_xlabel("tokens/s")
        panel.set_ylabel(name.replace("_", " ").replace(" ms", ", ms"))
    panels[0].legend(fontsize=8)
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__)
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
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    config = read_config(adapter)
    guidance = {"pad_weights": ",".join(f"{name}=1" for name in config.dimensions)}
    flags = ["--max-model-len", str(args.prompt + args.tokens + 32), "--dtype", args.dtype]
    flags += ["--served-model-name", "base", "--disable-uvicorn-access-log"]
    flags += ["--no-enable-prefix-caching", *(["--enforce-eager"] if args.eager else [])]
    records = []
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(served(["serve", base, *flags]))
        pad = stack.enter_context(served(serve_argv(base, adapter, flags)))
        for number in range(args.rounds + 1):  # the first warms up
            for rate in args.rates:
                for way in args.ways:
                    url = plain if way == "plain" else pad
                    found = once(way, url, base, rate, args, guidance)
                    if number:
                        records.append({"way": way, "rate": rate, **found})
    rows = summary(records, args.ways)
    arguments.tell(
        args,
        {
            "command": arguments.command(),
            "backbone": config.backbone.name,
            "fork_layer": config.fork_layer,
            "compiled": not args.eager,
            "versions": versions(),
            "rows": rows,
            "records": records,
            "table": table(rows),
        },
        partial(draw, rows),
    )


if __name__ == "__main__":
    main()
