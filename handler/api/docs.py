"""``GET /docs``: Swagger UI for this API, from the copy that Powertools ships; it loads nothing from other servers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from aws_lambda_powertools.event_handler.openapi import swagger_ui

from ..contract.openapi import document

CONTENT_SECURITY_POLICY = {
    # Scripts and styles are inline, and it calls only this API.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def page(base: str, card: dict[str, Any] | None = None) -> str:
    """The HTML, 1.7 MB with scripts and styles. ``base``, ``card``: see :func:`handler.contract.openapi.document`."""
    script, style = _assets()
    spec = json.dumps(document(base, card)).replace("</", "<\\/")  # else a description could end the script element
    html = swagger_ui.generate_swagger_html(spec, script, style, "", None)
    return html.replace("<title>Swagger UI</title>", "<title>Darkroom: the API</title>")


@cache
def _assets() -> tuple[str, str]:
    folder = Path(swagger_ui.__file__).parent
    names = ("swagger-ui-bundle.min.js", "swagger-ui.min.css")
    script, style = ((folder / name).read_text("utf-8") for name in names)
    return script, style
