"""The model card of an adapter, written from its own pad_config.json and a steering result.

In: AdapterConfig, whose `training` the run filled, and, where there is one, the JSON of
`pad-vllm evaluate --steering`. Out: Markdown. Every key is optional; a section without content is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pad_vllm.adapter.manifest import AdapterConfig, training_sections

_COUNTS = (
    "read",
    "malformed",
    "duplicate",
    "single",
    "long",
    "refused",
    "cut",
    "uninformative",
    "groups",
)
_MODELS = ("untrained", "prompted", "trained")
_PAIRS = {"pairs": "all", "clear": "clear"}


def model_card_text(config: AdapterConfig, steering: Mapping[str, Any] | None) -> str:
    """README.md of the adapter's folder."""
    blocks = [f"# PAD adapter for {config.backbone.name}", _summary(config)]
    for part in training_sections(config):
        merged = "dimensions" in part
        if merged:
            blocks.append(f"## {_taken(part['dimensions'])}")
        for title, content in _sections(part).items():
            if content:
                blocks += [f"{'###' if merged else '##'} {title}", *content]
    if steering:
        blocks += ["## Steering", *_steering(steering)]
    return "\n\n".join(blocks) + "\n"


def _taken(factors: Mapping[str, float]) -> str:
    """The dimensions that a merged adapter has of one."""
    return ", ".join(
        n if factor == 1 else f"{n} (times {factor:g})" for n, factor in factors.items()
    )


def _sections(training: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of one run."""
    return {
        "Training": _training(training),
        "Data": _data(training.get("data") or {}),
        "Taught by sentences": _taught(training.get("taught") or []),
        "Taught by scores": _credited(training.get("credited") or []),
        "Held-out pairs": _held_out(training.get("held_out") or [], training.get("recipe") or {}),
    }


def _summary(config: AdapterConfig) -> str:
    trunk = (
        "No LoRA"
        if config.heads_only
        else f"LoRA from layer {config.fork_layer} of {config.backbone.num_layers}"
    )
    guards = [
        f"{name} {value:g}"
        for name, value in (("no_repeat", config.no_repeat), ("min_p", config.min_p))
        if value
    ]
    defaults = ", ".join([f"beta {config.beta:g}", f"top_k {config.top_k}", *guards])
    return (
        f"Preference dimensions: {', '.join(config.dimensions)}. {trunk}; heads of rank {config.head_rank}; "
        f"default {defaults}."
    )


def _training(training: Mapping[str, Any]) -> list[str]:
    blocks = [f"    {training['command']}"] if training.get("command") else []
    made = []
    if training.get("revision"):
        made.append(f"Revision {training['revision']}.")
    if training.get("seed") is not None:
        made.append(f"Seed {training['seed']}.")
    if training.get("versions"):
        made.append(f"Versions: {_pairs(training['versions'])}.")
    recipe = f"Recipe: {_pairs(training['recipe'])}." if training.get("recipe") else ""
    return [*blocks, *filter(None, (" ".join(made), recipe, _cost(training)))]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cost(training: Mapping[str, Any]) -> str:
    parts = []
    if training.get("seconds"):
        each = ", ".join(f"{name} {value:,.0f} s" for name, value in training["seconds"].items())
        parts.append(f"Time since the run was last started: {each}.")
    if training.get("peak_memory_gib") is not None:
        parts.append(f"Peak memory: {training['peak_memory_gib']:.1f} GiB.")
    return " ".join(parts)


def _data(data: Mapping[str, Any]) -> list[str]:
    blocks = [data["described"]] if data.get("described") else []
    if data.get("prompts"):
        each = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in data["prompts"].items()
        )
        blocks.append(f"Prompts: {each}.")
    sources = data.get("sources") or []
    if sources:
        counts = [name for name in _COUNTS if any(name in source for source in sources)]
        rows = [
            [source.get("name", ""), *(_whole(source.get(c)) for c in counts)] for source in sources
        ]
        blocks.append(_table(["source", *(name.replace("_", " ") for name in counts)], rows))
    return blocks


def _whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _taught(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentence of each dimension; the shares of the told base's rewards on held-out prompts."""
    if not rows:
        return []
    legend = (
        "The teacher is the base itself, told the sentence; with an opposite, half the difference of the "
        "two. Share of its rewards explained on held-out prompts, over the candidates as likely as the "
        "base holds them. First: the first token of an answer. Heads: before training, in closed form. "
        "Constant: one direction for all states, which a bias over the vocabulary could do. Variance: the "
        "teacher's, in squared logits. Spread: what the trained rewards' was over the candidates, in logits; "
        "heads alone are then scaled to 1, so that beta is the strength of every dimension, and the "
        "teacher's own strength is at beta = spread."
    )
    said = [f"- {row['dimension']}: {' / opposite: '.join(row['sentences'])}" for row in rows]
    shares = ("trained", "first", "heads", "constant")
    sizes = ("variance", "spread")
    body = [
        [row["dimension"], *(_percent(row[s]) for s in shares), *(f"{row[s]:.3g}" for s in sizes)]
        for row in rows
    ]
    return [legend, "\n".join(said), _table(["dimension", *shares, *sizes], body)]


def _credited(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the critic explains; how rewards and credit go together on held-out prompts."""
    if not rows:
        return []
    legend = (
        "One policy-gradient step in closed form, by the credit of each token for its answer's score. "
        "Critic: share of the scores' squares that it explains from the state and the score so far, on "
        "prompts that it was not fitted on. Trained: correlation of the rewards of the tokens that held-out "
        "answers took with their credit. Constant: the same of one direction for all states, which a bias "
        "over the vocabulary could do. Rewards are scaled to a spread of one logit over the candidates."
    )
    columns = ("trained", "constant")
    body = [
        [row["dimension"], _percent(row["critic"]), *(f"{row[c]:.3f}" for c in columns)]
        for row in rows
    ]
    return [legend, _table(["dimension", "critic", *columns], body)]


def _held_out(rows: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[str]:
    """Accuracy by preference; a column for each model and kind of pairs that any row has."""
    if not rows:
        return []
    columns = [
        (model, kind)
        for kind in _PAIRS
        for model in _MODELS
        if any(kind in (row.get(model) or {}) for row in rows)
    ]
    far = any("distance" in row for row in rows)
    counted = any("count" in row for row in rows)
    head = ["preference", *(["from training"] if far else [])]
    head += [f"{model}, {_PAIRS[kind]}" for model, kind in columns]
    body = []
    for row in rows:
        cells = [row.get("preference", "")]
        cells += [_degrees(row.get("distance"))] if far else []
        cells += [_percent((row.get(model) or {}).get(kind)) for model, kind in columns]
        body.append(cells + ([_whole(row.get("count"))] if counted else []))
    legend = _legend({name for column in columns for name in column}, recipe, far=far)
    return [legend, _table([*head, *(["pairs"] if counted else [])], body)]


def _legend(shown: set[str], recipe: Mapping[str, Any], *, far: bool) -> str:
    ranked = (
        "Share of pairs of held-out responses that are ranked as their scores rank them under the "
        "preference; a coin has 50%."
    )
    parts = [ranked]
    if "prompted" in shown:
        parts.append("Prompted: the base alone, with the preference in words in its prompt.")
    if "clear" in shown:
        margin = recipe.get("least_margin")
        least = "a least margin" if margin is None else f"{margin:g}"
        parts.append(f"Clear pairs lie further apart than {least} of the dimension's spread.")
    if far:
        parts.append("From training: the angle to the nearest preference that was trained.")
    return " ".join(parts)


def _degrees(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}°"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    # Names to the left, numbers to the right.
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _steering(found: Mapping[str, Any]) -> list[str]:
    """What `pad-vllm evaluate --steering` wrote."""
    legend = (
        'Wins over the unguided answers, by judges that trained nothing; "teacher" is the told base. '
        "Repeated: share of repeated 4-grams. Perplexity under the base, relevance and words are "
        "relative to the unguided answers'. Told is plain prompting, + and - the signs of a dimension."
    )
    blocks = [f"    {found['command']}", f"{found['prompts']} prompts. {legend}"]
    for decoding in found["decodings"]:
        drawn = f"temperature {decoding['temperature']:g}, {decoding['tokens']} tokens"
        blocks += [f"{drawn[0].upper()}{drawn[1:]}:", "\n".join(decoding["table"])]
    return blocks
