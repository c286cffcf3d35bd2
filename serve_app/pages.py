"""Small HTML pages, without scripts and without anything from elsewhere."""

from __future__ import annotations

from html import escape

from fastapi.responses import HTMLResponse

from serve_app.problems import ProblemType

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
