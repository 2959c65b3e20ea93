"""The table of attributes that PAD sets on vLLM's objects has all that the package sets, and no others."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import pad_vllm
from pad_vllm.serving.start.served_adapters import ADD_ADAPTER_RPC, REMOVE_ADAPTER_RPC
from pad_vllm.vllm_api.patches.outcome_rpc import OUTCOME_METHOD
from pad_vllm.vllm_api.patches.pad_attributes import ATTRIBUTES

PACKAGE = Path(pad_vllm.__file__).parent
WORKER_METHODS = {
    "OUTCOME_METHOD": OUTCOME_METHOD,
    "ADD_ADAPTER_RPC": ADD_ADAPTER_RPC,
    "REMOVE_ADAPTER_RPC": REMOVE_ADAPTER_RPC,
}
TRANSFORMERS = {"pad_token", "pad_token_id"}  # of tokenizers and configs
LISTED = {name for attribute in ATTRIBUTES for name in attribute.name.split(", ")}


def strings(call):
    """The arguments of a call that are text, with `*` for a value in an f-string."""
    for argument in call.args:
        if isinstance(argument, ast.Constant):
            yield str(argument.value)
        elif isinstance(argument, ast.JoinedStr):
            yield "".join(
                getattr(part, "value", "") if isinstance(part, ast.Constant) else "*"
                for part in argument.values
            )


def names_in(node):
    """What a node of the source sets, on whatever object."""
    called = isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", ""))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif called in {"setattr", "setdefault", "register_buffer"}:
        yield from strings(node)
    elif called == "add_worker_method" and node.args[0].id in WORKER_METHODS:
        yield WORKER_METHODS[node.args[0].id]


def declared_in_mixins(tree):
    """Methods and attributes of classes: in engines/ these are mixed into a model's."""
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in cls.body:
            yield getattr(node, "name", getattr(getattr(node, "target", None), "id", ""))


def names_set():
    """file -> the names beginning with `pad` that it sets."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        names = {name for node in ast.walk(tree) for name in names_in(node)}
        path = file.relative_to(PACKAGE).as_posix()
        if path.startswith("engines/"):
            names |= set(declared_in_mixins(tree))
        yield path, {n for n in names if n == "pad" or n.startswith("pad_")} - TRANSFORMERS


def test_every_attribute_that_is_set_is_in_the_table():
    for file, names in names_set():
        for name in names:
            assert any(fnmatchcase(one, name) for one in LISTED), f"{file} sets {name}"


def test_every_attribute_in_the_table_is_set():
    found = {name for _, names in names_set() for name in names}
    for name in LISTED:
        assert any(fnmatchcase(name, one) for one in found), name


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.name)
def test_the_file_that_the_table_names_has_the_attribute(attribute):
    file = attribute.set_in.split(" and ")[0]
    name = attribute.name.split(", ")[0]
    text = (PACKAGE / file).read_text("utf-8")
    assert name in text or name[:-1] in text  # pad_head_A is pad_head_{letter}


def test_no_attribute_is_there_twice():
    names = [name for attribute in ATTRIBUTES for name in attribute.name.split(", ")]
    assert len(set(names)) == len(names)
