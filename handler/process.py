"""This process's own environment, which the AWS clients and other libraries read beside our settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .environment import HOST_CREDENTIALS
from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost")
HARMLESS = ("AWS_CA_BUNDLE", "AWS_EC2_METADATA_DISABLED", "AWS_PAGER")
OF_A_DEPLOYMENT = ("BUCKET", "QUEUE_URL", "DEAD_LETTER_URL", "EVENT_BUS", "PUBLIC_ENDPOINT_URL")


def use(**environ: str) -> Settings:
    """Sets environment variables of this process, which the AWS clients read as well, and reads the settings."""
    os.environ.update(environ)
    return Settings.load()


def leave_aside() -> list[str]:
    """Removes the variables that name another AWS or deployment from this process's environment. Returns the names of
    those that were set.
    """
    named = [name for name in os.environ if name.startswith("AWS_") or name in OF_A_DEPLOYMENT]
    return sorted(name for name in named if name not in HARMLESS and os.environ.pop(name))


def around_proxies() -> None:
    """From now on this process, and those that it starts, call this machine itself directly, whatever proxy is set."""
    listed = f"{os.environ.get('no_proxy', '')},{os.environ.get('NO_PROXY', '')}".split(",")
    hosts = ",".join(dict.fromkeys([*filter(None, (one.strip() for one in listed)), *LOOPBACK]))
    os.environ.update(no_proxy=hosts, NO_PROXY=hosts)


def names_credentials() -> bool:
    """Whether the environment names credentials, or where a host keeps its own."""
    return any(os.environ.get(name) for name in HOST_CREDENTIALS)


def provide(**environ: str) -> None:
    """Sets environment variables for libraries, unless they are set already."""
    for name, value in environ.items():
        os.environ.setdefault(name, value)


def invocation_trace() -> str | None:
    """The X-Ray tracing header of the current Lambda invocation, which the runtime sets anew for each."""
    return os.environ.get("_X_AMZN_TRACE_ID")


def terminal_variables() -> Mapping[str, str]:
    """The environment variables by which terminals identify themselves."""
    names = ("TERM", "TERM_PROGRAM", "LC_TERMINAL", "KITTY_WINDOW_ID")
    return {name: os.environ[name] for name in names if name in os.environ}
