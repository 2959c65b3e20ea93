"""Conversations: what they are parsed from, and values that files and splits on disk depend on."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from pad_vllm.text.conversation import Conversation, prompt_key, require_known_roles
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash

SYSTEM_AND_THREE_TURNS = [
    {"role": "system", "content": "Be BRIEF."},
    {"role": "user", "content": "And  now?"},
    {"role": "assistant", "content": "Well"},
    {"role": "user", "content": "Second"},
]
KEYS = [
    ("  Hello\tThere \n World ", "hello there world", 0.2340937964618206),
    ("STRASSE straße İ", "strasse straße i̇", 0.253576839575544),
    ("caf\u00e9\u2028x", "caf\u00e9 x", 0.02648512553423643),
    (SYSTEM_AND_THREE_TURNS, "and now?", 0.8122346403542906),
    ([{"role": "assistant", "content": "Only ME  here"}], "only me here", 0.7296295030973852),
    ([{"role": "system", "content": "S  Y"}], "s y", 0.38353307475335896),
    ("   ", "", 0.8894159947521985),
]
"""Prompt, key and position in the split, from before conversations had a type."""

SEEDED = [
    ("  Hello\tThere \n World ", 0.3660878804512322, 0.8797661918215454),
    ("caf\u00e9\u2028x", 0.2609621463343501, 0.30470830551348627),
    (SYSTEM_AND_THREE_TURNS, 0.8078886908479035, 0.1229296752717346),
]
"""Prompt, and hashes of its JSON that order prompts and pick instructions, from before, too."""


@pytest.mark.parametrize(("prompt", "key", "position"), KEYS)
def test_a_key_and_its_place_in_the_split_never_change(prompt, key, position):
    conversation = Conversation.model_validate(prompt)
    assert prompt_key(conversation) == key
    assert unit_hash(prompt_key(conversation)) == position


@pytest.mark.parametrize(("prompt", "ordered", "picked"), SEEDED)
def test_hashes_of_the_json_never_change(prompt, ordered, picked):
    text = Conversation.model_validate(prompt).to_json()
    assert unit_hash(f"0 {text}") == ordered
    assert unit_hash(text) == picked


def test_a_text_is_one_user_message_and_the_same_conversation():
    text = Conversation.model_validate("caf\u00e9")
    messages = Conversation.model_validate([{"role": "user", "content": "caf\u00e9"}])
    assert text == messages
    assert len({text, messages}) == 1
    assert text.messages() == [{"role": "user", "content": "caf\u00e9"}]
    assert text.to_json() == '[{"role": "user", "content": "caf\u00e9"}]'


@pytest.mark.parametrize("prompt", ["Hi", "", SYSTEM_AND_THREE_TURNS])
def test_json_pickles_and_copies_keep_a_conversation(prompt):
    conversation = Conversation.model_validate(prompt)
    assert Conversation.from_json(conversation.to_json()) == conversation
    assert pickle.loads(pickle.dumps(conversation)) == conversation
    assert copy.deepcopy(conversation) == conversation


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        None,
        3,
        {"role": "user", "content": "Hi"},
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": "Hi", "name": "Ann"}],
    ],
)
def test_what_is_neither_text_nor_messages_is_refused(prompt):
    with pytest.raises(ValueError, match="role|content|name|neither text nor a list"):
        Conversation.model_validate(prompt)


def test_roles_of_data_are_those_that_every_template_knows():
    tool = Conversation.model_validate([{"role": "tool", "content": "42"}])
    with pytest.raises(ValueError, match="role 'tool'; accepted: system, user, assistant"):
        require_known_roles(tool)
    with pytest.raises(ValueError, match="role 'tool'"):
        PreferenceRecord(prompt=tool, responses=[{"text": "a"}, {"text": "b"}])


def test_a_record_reads_and_writes_a_prompt_as_before():
    line = {"prompt": SYSTEM_AND_THREE_TURNS, "responses": [{"text": "a"}, {"text": "b"}]}
    record = PreferenceRecord.model_validate_json(json.dumps(line))
    assert record.prompt.messages() == SYSTEM_AND_THREE_TURNS
    assert record.model_dump(mode="json", exclude_defaults=True) == line
    assert PreferenceRecord.model_validate({**line, "prompt": "Hi"}).prompt[0].role == "user"
