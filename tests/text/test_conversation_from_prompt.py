"""Prompts read backwards through chat templates, and rendered for another model. No model runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from pad_vllm.text.conversation_from_prompt import (
    ChatTemplateReader,
    persrm_prompt_ids,
    persrm_prompt_text,
)
from pad_vllm.text.preference_text import with_preference

ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "<|im_start|>system\nBe of use.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        + ALTERNATE
        + "{% for m in messages %}{% if m['role'] == 'user' %}"
        "<s>[INST] {{ (system if loop.first else '') + m['content'] | trim }} [/INST]"
        "{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
    ),
    "mistral": (  # the system prompt goes into the last user turn
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        + ALTERNATE
        + "<s>{% for m in messages %}{% if m['role'] == 'user' %}"
        "[INST] {{ (system if loop.last else '') + m['content'] }}[/INST]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    "gemma": (
        "<s>{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + ALTERNATE
        + "{% for m in messages %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "llama3": (
        "{% for m in messages %}{{ '<s>' if loop.first }}<|header|>{{ m['role'] }}<|/header|>\n\n"
        "{{ m['content'] | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
    ),
}
ENDS = {
    "chatml": "<|im_end|>",
    "llama2": "</s>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "llama3": "<|eot|>",
}
SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|header|>", "<|/header|>", "<|eot|>"),
]
SYSTEM = {"role": "system", "content": "Rhyme."}
CHAT = [
    {"role": "user", "content": "Is 2 > 1?"},
    {"role": "assistant", "content": "Yes.\n\nAlways."},
    {"role": "user", "content": "[Why]\nthough"},
]


def bytewise(name):
    """A token for every byte, and one of the templates."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tokenizer.bos_token, tokenizer.chat_template = "<s>", TEMPLATES[name]
    return tokenizer


def llama_like(name):
    """Characters, a blank before each stretch of text, one stripped from what is decoded."""
    alphabet = ["▁", *map(chr, range(0x21, 0x7F))]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {t: i for i, t in enumerate(["<unk>", *SPECIAL, *byte_tokens, *alphabet])}
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def render(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def decoded(tokenizer, messages):
    return tokenizer.decode(
        tokenizer(render(tokenizer, messages), add_special_tokens=False).input_ids
    )


@pytest.fixture(scope="module", params=TEMPLATES)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=[bytewise, llama_like])
def tokenizer(request, name):
    return request.param(name)


def test_importing_it_brings_in_neither_torch_nor_vllm():
    said = (
        "import sys, pad_vllm.text.token_alignment; print({'torch', 'vllm'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize("shown", [render, decoded])
@pytest.mark.parametrize("turns", [1, 3])
def test_a_conversation_is_read_as_it_was_rendered(tokenizer, shown, turns):
    assert ChatTemplateReader(tokenizer).read(shown(tokenizer, CHAT[:turns])) == CHAT[:turns]


@pytest.mark.parametrize("turns", [1, 3])
def test_a_system_turn_is_read_where_the_template_marks_it(name, tokenizer, turns):
    messages = [SYSTEM, *CHAT[:turns]]
    template = ChatTemplateReader(tokenizer)
    if name == "gemma":  # refuses it
        assert template.read(render(tokenizer, CHAT)) == CHAT
    elif name == "mistral":  # hides it in the last user turn
        last = {"role": "user", "content": f"Rhyme.\n\n{CHAT[turns - 1]['content']}"}
        assert template.read(decoded(tokenizer, messages)) == [*CHAT[: turns - 1], last]
    else:
        assert template.read(decoded(tokenizer, messages)) == messages


def test_a_prompt_in_tokens_is_a_conversation_again(tokenizer):
    ids = tokenizer(render(tokenizer, CHAT), add_special_tokens=False).input_ids
    assert ChatTemplateReader(tokenizer).conversation_from_ids(ids) == CHAT


@pytest.mark.parametrize(
    "text",
    ["", "Once upon a time", "[INST]", "<s>", "<|im_start|>user\nHi<|im_end|>\n", "<s>[INST] Hi"],
)
def test_a_text_that_was_not_rendered_is_not_read(tokenizer, text):
    assert ChatTemplateReader(tokenizer).read(text) is None


def test_what_was_not_rendered_is_one_user_turn_without_special_tokens(tokenizer):
    ids = tokenizer("<s> Once upon a time\n", add_special_tokens=False).input_ids
    assert ChatTemplateReader(tokenizer).conversation_from_ids(ids) == [
        {"role": "user", "content": "Once upon a time"}
    ]


def test_a_tokenizer_without_a_template_reads_nothing():
    plain = tiny.tokenizer()
    plain.chat_template = None
    template = ChatTemplateReader(plain)
    assert (template.read("Hi"), template.end_of_turn) == (None, None)
    assert template.conversation_from_ids(plain.encode(" Hi\n")) == [
        {"role": "user", "content": "Hi"}
    ]


def test_a_second_beginning_of_sequence_is_overlooked():
    tokenizer = bytewise("llama3")
    assert ChatTemplateReader(tokenizer).read("<s>" + render(tokenizer, CHAT)) == CHAT


def test_the_token_that_ends_a_turn_is_the_templates(name, tokenizer):
    assert ChatTemplateReader(tokenizer).end_of_turn == tokenizer.convert_tokens_to_ids(ENDS[name])


def test_turns_need_not_alternate_where_the_template_does_not_mind():
    tokenizer = bytewise("chatml")
    messages = [CHAT[0], CHAT[0], CHAT[1], CHAT[1], SYSTEM, CHAT[2]]
    assert ChatTemplateReader(tokenizer).read(render(tokenizer, messages)) == messages


def test_a_template_that_says_the_date_is_read_on_the_next_day():
    tokenizer = bytewise("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("Be of use.", "Monday")
    template = ChatTemplateReader(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("Monday", "Tuesday")
    assert template.read(render(tokenizer, CHAT)) == CHAT


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=20).map(str.strip), min_size=1, max_size=5))
def test_any_contents_come_back(contents):
    roles = ["user", "assistant"] * 3
    messages = [
        {"role": r, "content": c}
        for r, c in zip(roles, contents[: -(-len(contents) // 2) * 2 - 1], strict=False)
    ]
    for one in READERS:
        text = render(one._tokenizer, messages)
        assert one.read(text) == messages


READERS = [ChatTemplateReader(bytewise(name)) for name in TEMPLATES]


def test_a_prompt_for_the_persrm_is_what_training_renders(tokenizer):
    stated = with_preference(CHAT, "Be brief.")
    assert persrm_prompt_text(tokenizer, CHAT, "Be brief.") == render(tokenizer, stated)
    assert persrm_prompt_text(tokenizer, CHAT) == render(tokenizer, CHAT)
    ids = tokenizer(render(tokenizer, CHAT), add_special_tokens=False).input_ids
    assert persrm_prompt_ids(tokenizer, CHAT) == ids


def test_a_refused_system_turn_goes_into_the_users():
    tokenizer = bytewise("gemma")
    text = persrm_prompt_text(tokenizer, [SYSTEM, *CHAT])
    assert "user\nRhyme.\n\nIs 2 > 1?<end_of_turn>" in text


def test_a_system_turn_that_a_template_drops_is_not_lost():
    tokenizer = bytewise("gemma")
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }};{% endfor %}"
    )
    assert persrm_prompt_text(tokenizer, [SYSTEM, CHAT[0]]) == "Rhyme.\n\nIs 2 > 1?;"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [SYSTEM],
        [SYSTEM, SYSTEM],
        [CHAT[1]],
        [CHAT[1], CHAT[1], CHAT[0], SYSTEM],
        [CHAT[0], CHAT[1]],
    ],
)
@pytest.mark.parametrize("preference", ["", "Be brief.", "\ud800"])
def test_no_conversation_is_too_odd_for_a_prompt(tokenizer, messages, preference):
    text = persrm_prompt_text(tokenizer, messages, preference)
    assert preference in text
    assert all(message["content"].strip() in text for message in messages)
    assert persrm_prompt_ids(tokenizer, messages, preference) or not (messages or preference)


def test_without_a_template_turns_stand_one_after_the_other():
    plain = tiny.tokenizer()
    plain.chat_template = None
    assert persrm_prompt_text(plain, CHAT) == "Is 2 > 1?\n\nYes.\n\nAlways.\n\n[Why]\nthough\n\n"


@pytest.mark.engine
def test_a_real_template_is_read_without_the_system_prompt_it_puts_in(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    template = ChatTemplateReader(tokenizer)
    assert "SmolLM" in render(tokenizer, CHAT)
    for messages in (CHAT, [SYSTEM, *CHAT]):
        ids = tokenizer(render(tokenizer, messages), add_special_tokens=False).input_ids
        assert template.conversation_from_ids(ids) == messages
    assert template.end_of_turn == tokenizer.eos_token_id
