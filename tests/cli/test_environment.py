"""What a command makes of the environment, before anything is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handler.cli.local.session import NO_OTHERS, aws_environment

if TYPE_CHECKING:
    import pytest


def test_an_endpoint_that_a_command_is_given_is_for_all_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BUCKET", "QUEUE_URL", "AWS_ENDPOINT_URL", *NO_OTHERS):
        monkeypatch.setenv(name, "true" if "IGNORE" in name else "http://127.0.0.1:1")
    with aws_environment("http://127.0.0.1:2", None, own=False, say=print) as settings:
        assert settings.other_aws == {"AWS_ENDPOINT_URL": "http://127.0.0.1:2"}
