"""What an adapter's record says of its training: which prompts, and which judges taught its dimensions.

In: AdapterConfigs. Out: dimension -> judges that are not independent of it; an error for prompts that meet
those of the training, or the judges'. Adapters that older versions trained do not record their prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pad_vllm.adapter.manifest import AdapterConfig, training_sections
from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.text.prompt_digests import find_digested
from pad_vllm.wording import short_repr

TEACHER_JUDGE = "teacher"
"""Judge of answers: the base with the instruction in its prompt."""


def judges_that_taught(config: AdapterConfig) -> dict[str, frozenset[str]]:
    """Dimension -> names of the judges that taught it: its scorers, or the instructed base.

    Where the record does not name the scorers, the one of the dimension's own name is taken for one.
    """
    taught: dict[str, frozenset[str]] = dict.fromkeys(config.dimensions, frozenset())
    for section in training_sections(config):
        if "taught" in section:
            found = {row["dimension"]: [TEACHER_JUDGE] for row in section["taught"] or []}
        else:
            names = section.get("dimensions") or config.dimensions
            recorded = (section.get("data") or {}).get("scorers")
            found = {name: [name] if recorded is None else recorded.get(name, []) for name in names}
        for name in taught.keys() & found.keys():
            taught[name] |= frozenset(found[name])
    return taught


def prompts_are_recorded(config: AdapterConfig) -> bool:
    """Whether the adapter says which prompts it was trained on."""
    return all(_digests(section) is not None for section in training_sections(config))


def require_separate_prompts(
    configs: Mapping[str, AdapterConfig],
    prompts: Sequence[Conversation],
    judge_prompts: Sequence[Conversation],
) -> None:
    """Refuse prompts that meet.

    Args:
        configs: name of an adapter, as the user knows it -> config.
        prompts: that are answered and judged.
        judge_prompts: that judges are fitted on.

    Raises:
        ValueError: a prompt is in both lists, or an adapter was trained on it.
    """
    for option, asked in (("--prompts", prompts), ("--judge-prompts", judge_prompts)):
        for name, config in configs.items():
            for section in training_sections(config):
                shared = find_digested(_digests(section) or "", asked)
                _refuse(option, asked, shared, f"what {name} was trained on")
    judged = set(map(prompt_key, judge_prompts))
    shared = [prompt for prompt in prompts if prompt_key(prompt) in judged]
    _refuse("--prompts", prompts, shared, "--judge-prompts")


def _refuse(
    option: str,
    asked: Sequence[Conversation],
    shared: Sequence[Conversation],
    other: str,
) -> None:
    if shared:
        raise ValueError(
            f"{option}: {len(shared)} of its {len(asked)} prompts are also among {other}, such as "
            f"{short_repr(shared[0][-1].content)}; accepted: others, since these say nothing of new "
            "prompts. Take them out of the file, or leave the option out for prompts that ship"
        )


def _digests(section: Mapping[str, object]) -> str | None:
    data = section.get("data")
    found = data.get("trained_prompts") if isinstance(data, Mapping) else None
    return found if isinstance(found, str) else None
