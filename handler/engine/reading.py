"""How much of a task's texts its model reads: tokenizers cut what is too long, and pipelines do not say so."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SPECIAL = 8
"""More tokens than any tokenizer puts around a text. Beside these no text has more tokens than bytes."""


class Reading:
    """What the tokenizers of one task were given and what they cut."""

    def __init__(self) -> None:
        self.limits: set[int] = set()
        """The most tokens that each reads, its own around the text included."""
        self._read: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """By text: the limit and the number of its tokens, once for each tokenizer."""

    def note(self, texts: Any, limit: int, count: Callable[[str], int]) -> None:
        """A tokenizer was called with ``texts``, a string or a list of them, and cuts after ``limit`` tokens. ``count``
        tells the tokens of a whole text.
        """
        self.limits.add(limit)
        for text in [texts] if isinstance(texts, str) else texts:
            if isinstance(text, str):
                short = len(text.encode()) + SPECIAL <= limit
                self._read[text].append((limit, 0 if short else count(text)))

    def warnings(self, call: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Field and message for each text of the pipeline's arguments ``call`` that no tokenizer reads whole.

        Where there are several text encoders, as in Flux or Stable Diffusion 3, the one that reads most counts.
        """
        found = []
        for text, read in self._read.items():
            limit, tokens = max(read)
            if all(tokens > limit for limit, tokens in read):
                message = f"the model reads {limit} tokens; {tokens - limit} more were cut"
                found.append((_field(text, call), message))
        return list(dict.fromkeys(found))


def _field(text: str, call: Mapping[str, Any]) -> str:
    """Which of the texts it is, or was made from: some pipelines put words around it."""
    negative = call.get("negative_prompt") or ""
    is_negative = negative and negative.strip() in text and call["prompt"].strip() not in text
    return "negative_prompt" if is_negative else "prompt"
