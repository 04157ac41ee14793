"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else, for scripts")]
Prompt = Annotated[str | None, typer.Argument(help="What to draw")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Hub id, folder or s3://bucket/prefix")]
Endpoint = Annotated[
    str | None, typer.Option(metavar="URL", help="Use the AWS at this URL, with your BUCKET and QUEUE_URL")
]
OwnAws = Annotated[
    bool, typer.Option("--aws", help="Use your own AWS, with BUCKET and QUEUE_URL, in place of the embedded one")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the handlers' log, and what faults come from")]
