"""Emulators for the templates: MiniStack with TLS and IAM, and moto."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from handler.cli.local.aws import EmbeddedAws
from tests.ministack import ministack_server

from .stacks import Aws, deploy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .stacks import Stack

# botocore's default endpoints and files of this machine must not leak in.
os.environ["AWS_CONFIG_FILE"] = os.devnull


@pytest.fixture(scope="session")
def mini(request: pytest.FixtureRequest) -> Iterator[Aws]:
    """MiniStack, which checks signatures and policies; with TLS, since the template's policies refuse the rest."""
    python = request.config.getoption("--ministack")
    assert python, "needs --ministack PYTHON: make infra"
    with ministack_server(python, tls=True) as (url, certificate):
        yield Aws(url, certificate)


@pytest.fixture(scope="session")
def moto() -> Iterator[Aws]:
    with EmbeddedAws() as aws:
        yield Aws(aws.endpoint)


@pytest.fixture(scope="session")
def stack(mini: Aws) -> Stack:
    """The template as it is on MiniStack. Without its alarms: some of them it refuses (test_deploy has the list)."""
    return deploy(mini, "darkroom", {"Alarms": "false"})
