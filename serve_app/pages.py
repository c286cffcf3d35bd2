"""Small HTML pages. Nothing on them comes from elsewhere, and no script stands in the markup."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources

from fastapi.responses import HTMLResponse, Response

from serve_app.problem_types import ProblemType

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def problem_page(kind: ProblemType) -> HTMLResponse:
    """The page that the `type` of a problem document leads to."""
    return html_page(
        f"{kind.status} {kind.title}",
        f"<h1>{escape(kind.title)}</h1><p>Status {kind.status}, <code>/problems/{escape(kind.slug)}"
        f"</code></p><p>{escape(kind.explanation)}</p>",
    )


def html_page(title: str, body: str) -> HTMLResponse:
    """A whole page around a body that is already escaped."""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<body>{body}</body></html>",
        headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
    )


def console_files() -> Mapping[str, Response]:
    """The web page that shows the state and tries a recommendation, and its parts, by path."""
    parts = {
        "/": ("console.html", "text/html"),
        "/console.css": ("console.css", "text/css"),
        "/console.js": ("console.js", "text/javascript"),
    }
    folder = resources.files("serve_app")
    return {
        path: Response(
            folder.joinpath(name).read_bytes(),
            headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
            media_type=media_type,
        )
        for path, (name, media_type) in parts.items()
    }
