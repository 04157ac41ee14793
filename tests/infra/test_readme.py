"""The commands of infra/README.md, run by a shell with the real AWS command line against MiniStack, in their order."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.ministack import ministack_server

from .stacks import Aws
from .template import EXAMPLES, INFRA

pytestmark = pytest.mark.infra

ROOT = INFRA.parent
DEPLOY = (INFRA / "README.md").read_text().partition("\n## Deploy\n")[2].partition("\n## ")[0]
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", DEPLOY, re.DOTALL)).splitlines()
NOT_HERE = {
    "docker login": "no registry here",
    "docker build": "tested with the image",
    "docker push": "no registry here",
    "curl -X POST": "the host's name is AWS's; test_end_to_end asks under the emulator's",
    "curl ": "the same",
    "export REGISTRY=": "no region is configured; the test's environment names the registry",
    "darkroom preflight": "tests/aws/test_preflight.py asks moto, and stand-ins for what that lacks",
    "aws application-autoscaling": "MiniStack lacks it",
    "aws ecs update-service --cluster darkroom-gpu": "the same stack",
    "aws ecs list-container-instances": "the same stack",
    "delete-stack --stack-name darkroom-events": "no emulator knows its types; test_events makes them one by one",
    "--stack-name darkroom-alarms --template-file": "MiniStack refuses metric math; test_deploy deploys the rest",
    "--stack-name darkroom-gpu": "MiniStack lacks four of its types; test_gpu deploys the rest",
}
BEFORE_THE_LAST = "aws s3 rb"


def run_here(command: str) -> bool:
    return not any(part in command for part in NOT_HERE)


def test_what_is_not_run_is_listed() -> None:
    assert {part for part in NOT_HERE if any(part in command for command in COMMANDS)} == NOT_HERE.keys()
    assert sum(map(run_here, COMMANDS)) == 16


def test_the_commands_in_their_order(request: pytest.FixtureRequest) -> None:
    python, aws = request.config.getoption("--ministack"), request.config.getoption("--awscli")
    assert aws, "needs --awscli AWS: make infra"
    commands = [command for command in COMMANDS if run_here(command)]
    at = next(number for number, command in enumerate(commands) if command.startswith(BEFORE_THE_LAST))
    with ministack_server(python, tls=True) as (url, certificate):
        environ = {
            "PATH": f"{Path(aws).absolute().parent}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": url,
            "AWS_CA_BUNDLE": certificate,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_PAGER": "",
            "REGISTRY": EXAMPLES["ImageUri"][0].partition("/")[0],
        }

        def shell(lines: list[str]) -> str:
            # A second between them: it names its change sets by the second.
            # Its SQS commands go to AWS all the same, unless told on the command line.
            here = f'aws() {{ command aws --endpoint-url {url} "$@"; }}'
            script = "\n".join(["set -euo pipefail", here, *lines]).replace(
                "\naws cloudformation deploy", "\nsleep 1\naws cloudformation deploy"
            )
            done = subprocess.run(
                ["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        out = shell([*commands[:at], 'echo "BUCKET $BUCKET KEY $KEY API $API"'])
        (bucket, key, api) = re.findall(r"BUCKET (\S+) KEY (\S+) API (\S+)", out)[0]
        assert api.startswith("https://")
        assert len(key) >= 20
        # Torn down but for the data.
        aws_here = Aws(url, certificate)
        assert aws_here.client("lambda").list_functions()["Functions"] == []
        assert aws_here.client("sqs").list_queues().get("QueueUrls", []) == []
        aws_here.client("s3").put_object(Bucket=bucket, Key="tasks/a/1/0.png", Body=b"kept")
        shell([f"export BUCKET={bucket}", commands[at]])
        assert bucket not in [one["Name"] for one in aws_here.client("s3").list_buckets()["Buckets"]]
