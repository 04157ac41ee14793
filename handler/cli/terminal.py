"""Inline pictures for terminals that are known to support them; a guess would print garbage in the others."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KITTY_CHUNK = 4096


def picture_escape(body: bytes, content_type: str, variables: Mapping[str, str]) -> str | None:
    """The escape sequence that shows the image file in this terminal, or None if it is not known to support one.

    Sources: iTerm2's inline images protocol (OSC 1337), kitty's terminal graphics protocol (PNG only, chunks of 4096).
    """
    data = base64.b64encode(body).decode()
    if variables.get("TERM_PROGRAM") == "iTerm.app" or variables.get("LC_TERMINAL") == "iTerm2":
        return f"\x1b]1337;File=inline=1;size={len(body)};width=16:{data}\x07\n"
    if content_type == "image/png" and (variables.get("KITTY_WINDOW_ID") or variables.get("TERM") == "xterm-kitty"):
        return "".join(_kitty(data)) + "\n"
    return None


def _kitty(data: str) -> Iterator[str]:
    chunks = [data[at : at + KITTY_CHUNK] for at in range(0, len(data), KITTY_CHUNK)]
    for number, chunk in enumerate(chunks):
        more = int(number < len(chunks) - 1)
        control = f"f=100,a=T,m={more}" if number == 0 else f"m={more}"
        yield f"\x1b_G{control};{chunk}\x1b\\"
