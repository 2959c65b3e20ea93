"""The model card of an adapter, written from its pad_config.json and a steering result.

In: AdapterConfig, whose `training` the run filled, and, if there is one, the JSON that `pad-vllm steer`
wrote. Out: Markdown. Every key is optional; a section without content is omitted.
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
    "same",
    "unlabelled",
    "uninformative",
    "groups",
)
"""Counts of a source, in the order of the columns."""

_MODELS = {
    "untrained": "untrained",
    "prompted": "prompted",
    "trained_there": "trained, on the same",
    "trained": "trained",
}
_PAIR_KINDS = {"pairs": "all", "clear": "clear"}
"""Key of an accuracy -> its name in the table's head."""


def model_card_text(config: AdapterConfig, steering: Mapping[str, Any] | None) -> str:
    """The text of README.md in the adapter's folder. steering: JSON of `pad-vllm steer`, if there is one."""
    blocks = [f"# PAD adapter for {config.backbone.name}", _summary(config)]
    for part in training_sections(config):
        merged = "dimensions" in part
        if merged:
            blocks.append(f"## {_merged_dimensions(part['dimensions'])}")
        for title, content in _sections(part).items():
            if content:
                blocks += [f"{'###' if merged else '##'} {title}", *content]
    if dose := config.training.get("dose"):
        blocks += ["## Dose", *_dose_section(dose)]
    if steering:
        blocks += ["## Steering", *_steering_section(steering)]
    return "\n\n".join(blocks) + "\n"


def _merged_dimensions(factors: Mapping[str, float]) -> str:
    """Title of a part of a merged adapter: the dimensions that come from it, with their factors; 0 is one of
    which the learned prefix alone does.
    """
    notes = {0.0: " (learned prefix)", 1.0: ""}
    return ", ".join(
        name + notes.get(factor, f" (times {factor:g})") for name, factor in factors.items()
    )


def _sections(training: Mapping[str, Any]) -> dict[str, list[str]]:
    """Title -> blocks of each section about one run."""
    pairs = training.get("held_out") or []
    return {
        "Training": _training_section(training),
        "Data": _data_section(training.get("data") or {}),
        "Trained from instructions": _instructions_section(training.get("taught") or []),
        "Trained from scores": _scores_section(training.get("credited") or []),
        "Held-out pairs": _held_out_section(pairs, training.get("recipe") or {}),
    }


def _summary(config: AdapterConfig) -> str:
    trunk = (
        "No LoRA"
        if config.heads_only
        else f"LoRA from layer {config.fork_layer} of {config.backbone.num_layers}"
    )
    merged = config.backbone.merged
    if merged is not None:
        trunk += f"; trained on {merged.base} with the LoRA {merged.lora} merged into it"
    heads = f"{'gated heads' if config.gated else 'heads'} of rank {config.head_rank}"
    guards = [
        f"{name} {value:g}"
        for name, value in (
            ("no_repeat", config.no_repeat),
            ("min_p", config.min_p),
            ("loop_price", config.loop_price),
        )
        if value
    ]
    prefixes = ""
    if config.prefixes is not None:
        prefixes = (
            f" Learned prefixes of {config.prefixes.num_tokens} tokens, read from layer "
            f"{config.prefixes.fork_layer} up: {', '.join(config.prefixes.digests)}."
        )
    defaults = ", ".join([f"beta {config.beta:g}", f"top_k {config.top_k}", *guards])
    return (
        f"Preference dimensions: {', '.join(config.dimensions)}. {trunk}; {heads}; default {defaults}."
        f"{prefixes}"
    )


def _training_section(training: Mapping[str, Any]) -> list[str]:
    """The command, what a rerun needs, the recipe and what it cost."""
    blocks = [f"    {training['command']}"] if training.get("command") else []
    provenance = []
    if training.get("revision"):
        provenance.append(f"Revision {training['revision']}.")
    if training.get("seed") is not None:
        provenance.append(f"Seed {training['seed']}.")
    if training.get("versions"):
        provenance.append(f"Versions: {_names_and_values(training['versions'])}.")
    recipe = f"Recipe: {_names_and_values(training['recipe'])}." if training.get("recipe") else ""
    return [*blocks, *filter(None, (" ".join(provenance), recipe, _cost(training)))]


def _names_and_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cost(training: Mapping[str, Any]) -> str:
    parts = []
    if training.get("seconds"):
        each = ", ".join(f"{name} {value:,.0f} s" for name, value in training["seconds"].items())
        parts.append(f"Time since the run was last started: {each}.")
    if training.get("peak_memory_gib") is not None:
        parts.append(f"Peak memory: {training['peak_memory_gib']:.1f} GiB.")
    return " ".join(parts)


def _data_section(data: Mapping[str, Any]) -> list[str]:
    """What the method says of its data, prompts by part, and a table of sources."""
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
            [source.get("name", ""), *(_count(source.get(c)) for c in counts)] for source in sources
        ]
        blocks.append(_table(["source", *(name.replace("_", " ") for name in counts)], rows))
    blocks += [
        f"{source.get('name', '')}: left out: {_names_and_values(source['left_out'])}."
        for source in sources
        if source.get("left_out")
    ]
    if limit := data.get("response_limit"):
        blocks.append(
            f"Answers were read up to {limit['tokens']:,} tokens ({limit['origin']}); {limit['cut']:,} of "
            f"{limit['answers']:,} were longer and were cut. Same: after the cut another answer has the same "
            "tokens. Unlabelled: cut, and left out, since its scores are of the whole answer."
        )
    return blocks


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _instructions_section(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The instruction of each dimension; the share of the teacher's rewards explained on held-out prompts."""
    if not rows:
        return []
    legend = (
        "The teacher is the base itself with the instruction in its prompt; with an opposite, half the "
        "difference of the two. The table has the share of the teacher's rewards that is explained on "
        "held-out prompts, candidates weighted by their probability under the base. First: the first token "
        "of an answer. Heads: before training, in closed form. Constant: one direction for all states, as a "
        "bias over the vocabulary has. Variance: of the teacher's rewards, in squared logits. Spread: "
        "standard deviation of the trained rewards over the candidates, in logits; an adapter with heads "
        "only is then scaled to 1, so that beta means the same strength for every dimension, and "
        "beta = spread is the teacher's own strength."
    )
    instructions = [
        f"- {row['dimension']}: {' / opposite: '.join(row['sentences'])}" for row in rows
    ]
    shares = ["trained", "first", "heads", "constant"]
    if any("prefix" in row for row in rows):
        legend += (
            " Sentence: the instruction's own keys and values in front of the layers that read prefixes, "
            "untrained. Prefix: the learned prefix; prefix first: at the first token of an answer."
        )
        shares += ["sentence", "prefix", "prefix_first"]
    sizes = ("variance", "spread")
    body = [
        [
            row["dimension"],
            *(_percent(row.get(share)) for share in shares),
            *(f"{row[size]:.3g}" for size in sizes),
        ]
        for row in rows
    ]
    head = [name.replace("_", " ") for name in ("dimension", *shares, *sizes)]
    return [legend, "\n".join(instructions), _table(head, body)]


def _scores_section(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the critic explains, and the correlation of rewards and credit on held-out prompts."""
    if not rows:
        return []
    legend = (
        "One policy-gradient step in closed form, from the credit of each token for its answer's score. "
        "Critic: share of the scores' variance that the critic explains from the state and the score so "
        "far, on prompts that it was not fitted on. Trained: correlation of reward and credit over the "
        "tokens of held-out answers. Constant: the same for one direction for all states, as a bias over "
        "the vocabulary has. Rewards are scaled to a spread of one logit over the candidates."
    )
    columns = ("trained", "constant")
    body = [
        [row["dimension"], _percent(row["critic"]), *(f"{row[c]:.3f}" for c in columns)]
        for row in rows
    ]
    return [legend, _table(["dimension", "critic", *columns], body)]


def _held_out_section(rows: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[str]:
    """Accuracy by preference; a column for each model and kind of pairs that any row has."""
    if not rows:
        return []
    columns = [
        (model, kind)
        for kind in _PAIR_KINDS
        for model in _MODELS
        if any(kind in (row.get(model) or {}) for row in rows)
    ]
    with_angle = any("distance" in row for row in rows)
    with_count = any("count" in row for row in rows)
    head = ["preference", *(["from training"] if with_angle else [])]
    head += [f"{_MODELS[model]}, {_PAIR_KINDS[kind]}" for model, kind in columns]
    body = []
    for row in rows:
        cells = [row.get("preference", "")]
        cells += [_degrees(row.get("distance"))] if with_angle else []
        cells += [_percent((row.get(model) or {}).get(kind)) for model, kind in columns]
        body.append(cells + ([_count(row.get("count"))] if with_count else []))
    shown = {name for column in columns for name in column}
    legend = _held_out_legend(shown, recipe, with_angle=with_angle)
    return [legend, _table([*head, *(["pairs"] if with_count else [])], body)]


def _held_out_legend(shown: set[str], recipe: Mapping[str, Any], *, with_angle: bool) -> str:
    """shown: names of the models and kinds of pairs that have a column."""
    ranked = (
        "Share of pairs of held-out responses that are ranked as their scores rank them under the "
        "preference; chance is 50%."
    )
    parts = [ranked]
    if "prompted" in shown:
        parts.append(
            "Prompted: the base without an adapter, with the preference in its prompt, on the first prompts."
        )
    if "trained_there" in shown:
        parts.append("On the same: the adapter on the prompts that the prompted base read.")
    if "clear" in shown:
        margin = recipe.get("least_margin")
        least = "a least margin" if margin is None else f"{margin:g}"
        parts.append(f"Clear pairs lie further apart than {least} of the dimension's spread.")
    if with_angle:
        parts.append("From training: the angle to the nearest preference that was trained.")
    return " ".join(parts)


def _degrees(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}°"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table: the first column aligned left, the others right."""
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _dose_section(dose: Mapping[str, Any]) -> list[str]:
    """How `pad-vllm dose` chose the strengths."""
    legend = (
        f"{dose['prompts']} prompts, temperature {dose['temperature']:g}, at most {dose['tokens']} tokens. "
        "Way: how far the answers' mean log-probability under the base with the instruction in its prompt, "
        "less that under the base, has come from unguided answers (0) to told ones (1). Perplexity: under "
        "the base, relative to the unguided answers'. Repeated: share of repeated 4-grams. Derailed: share "
        "of answers that begin as neither base would. Of each dimension the strength is taken that goes "
        "furthest and costs no more than asking in the prompt; the heads are scaled so that the default "
        "beta means it."
    )
    return [f"    {dose['command']}", legend, "\n".join(dose["table"])]


def _steering_section(result: Mapping[str, Any]) -> list[str]:
    """What `pad-vllm steer` measured: a table of conditions for each decoding."""
    legend = (
        "Wins over the unguided answers, by judges; those with a * taught the dimension and are not "
        'independent of it. The judge "teacher" '
        "is the base with the instruction in its prompt. Repeated: share of repeated 4-grams. Perplexity "
        "under the base, relevance and words are relative to the unguided answers'. Told: plain prompting, "
        "with the instruction in the prompt. + and -: the sign of a dimension's weight."
    )
    blocks = [f"    {result['command']}", f"{result['prompts']} prompts. {legend}"]
    for decoding in result["decodings"]:
        temperature, tokens = decoding["temperature"], decoding["tokens"]
        blocks += [f"Temperature {temperature:g}, {tokens} tokens:", "\n".join(decoding["table"])]
    return blocks
