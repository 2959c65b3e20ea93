"""The page's files as a browser gets them: types, headers, and nothing but them."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pad_vllm.serving.page.page_routes import STATIC_FOLDER, page_router

FILES = sorted(path for path in STATIC_FOLDER.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(page_router())
    return TestClient(app, follow_redirects=False)


def test_the_page_is_html_and_its_address_ends_in_a_slash(client):
    page = client.get("/pad/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert '<html lang="en">' in page.text
    assert client.get("/pad").headers["location"] == "pad/"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("theme.css", "text/css"), ("js/main.js", "text/javascript"), ("icon.svg", "image/svg+xml")],
)
def test_files_have_the_types_that_browsers_ask_for(client, name, kind):
    assert client.get(f"/pad/{name}").headers["content-type"].startswith(kind)


def test_nothing_from_another_host_and_no_inline_script_is_allowed(client):
    response = client.get("/pad/")
    policy = dict(
        part.strip().split(" ", 1)
        for part in response.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {
        "'self'"
    }
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/pad/../page_routes.py",
        "/pad/%2e%2e/page_routes.py",
        "/pad/..%2fpage_routes.py",
        "/pad/js/..%2f..%2fpage_routes.py",
        "/pad//etc/passwd",
        "/pad/%2fetc%2fpasswd",
        "/pad/..%5cpage_routes.py",
        "/pad/nothing.html",
        "/pad/js",
        "/pad/%00",
        "/pad/" + "a" * 5000,
    ],
)
def test_no_path_leads_out_of_the_folder(client, path):
    response = client.get(path)
    assert response.status_code in (400, 404)
    assert "def page_router" not in response.text
    assert "root:" not in response.text


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_files_name_no_other_host_and_hold_no_inline_code(file):
    text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://", text)
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text
    assert "document.write" not in text
    if file.suffix == ".html":
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", text)


def test_modules_and_style_sheets_that_are_named_exist():
    for file in FILES:
        text = file.read_text("utf-8")
        names = re.findall(r'from "\./([\w.]+)"', text)
        names += re.findall(r'(?:href|src)="([\w./]+\.(?:css|js|svg))"', text)
        for name in names:
            assert (file.parent / name).is_file(), f"{file.name} names {name}"
