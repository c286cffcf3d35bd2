"""The web page: whole, from this service alone, and safe to show strangers' texts."""

from __future__ import annotations

import re

from serving_fakes import FakeActors, films, replica


async def test_the_page_and_its_parts_are_served_from_here_alone() -> None:
    async with replica(FakeActors(films(3))) as (_, client):
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        parts = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert set(parts) == {"/console.css", "/console.js", "/openapi.json"}
        for part in parts:
            assert (await client.get(part)).status_code == 200


async def test_no_script_or_style_stands_in_the_page_and_the_policy_allows_none() -> None:
    async with replica(FakeActors(films(3))) as (_, client):
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<style|<script(?! src=)| on\w+=| style=", page.text)


async def test_the_script_puts_in_text_and_never_markup() -> None:
    async with replica(FakeActors(films(3))) as (_, client):
        script = (await client.get("/console.js")).text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script
        )
