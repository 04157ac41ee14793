"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else, for scripts")]
Prompt = Annotated[str | None, typer.Argument(help="What to draw")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What to keep out of the picture")]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps, 1 to 200")]
Guidance = Annotated[float | None, typer.Option("--guidance", help="How closely to follow the prompt, 0 to 50")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same picture")]
Width = Annotated[int | None, typer.Option(help="Pixels")]
Height = Annotated[int | None, typer.Option(help="Pixels")]
Number = Annotated[int | None, typer.Option("--num-images", help="1 to 8")]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp")]
Quality = Annotated[int | None, typer.Option(help="1 to 100, for jpeg and webp")]
Source = Annotated[
    Path | None, typer.Option("--image", exists=True, dir_okay=False, help="Draw from this PNG, JPEG or WebP file")
]
Strength = Annotated[float | None, typer.Option(help="How far to go from the image, 0 to 1")]
Name = Annotated[str | None, typer.Option("--task-id", help="Names the task")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="To find it by; may be given several times")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Hub id, folder or s3://bucket/prefix")]
Endpoint = Annotated[
    str | None, typer.Option(help="Use the AWS at this URL (BUCKET and QUEUE_URL set) in place of the embedded one")
]


def request_fields(**fields: Any) -> dict[str, Any]:
    """A request's fields, without those that were not given."""
    return {name: value for name, value in fields.items() if value is not None and value != []}
