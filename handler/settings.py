"""The settings: one immutable object, read once from environment variables.

A plain dataclass on purpose: the status handler imports it at every cold start, and pydantic-settings alone would take
most of its 200 ms.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .environment import parse, setting, shared
from .errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from dataclasses import Field

WEEK = 7 * 24 * 3600
SWITCH = ("auto", "0", "1")
TRUE_OR_FALSE = ("true", "false")
"""What AWS's own switches take, for `1` is false to boto3."""
EXAMPLES = {
    "bucket": "my-bucket",
    "queue_url": "https://sqs.eu-central-1.amazonaws.com/123456789012/tasks",
    "dead_letter_url": "https://sqs.eu-central-1.amazonaws.com/123456789012/tasks-dead",
}
ENDPOINTS = (
    "aws_endpoint_url",
    *(f"aws_endpoint_url_{service}" for service in ("s3", "sqs", "sts", "eventbridge")),
)
URL = re.compile(r"https?://(\[[\da-f:.]+\]|[\w.-]+)(:\d+)?(/[^?#\s]*)?", re.IGNORECASE)
BUILT_IN_MODEL = Path(__file__).parent / "model"


@dataclass(frozen=True)
class Settings:
    """Each field is read from the environment variable of its name in capitals; an empty one counts as unset."""

    bucket: str = setting("", "S3 bucket of records and images; needed by every handler")
    queue_url: str = setting("", "URL of the SQS queue; needed by `submit`, `generate` and the worker")
    dead_letter_url: str = setting(
        "", "URL of the dead-letter queue; set, the worker writes down what ends there, and `deadletter` waits properly"
    )
    event_bus: str = setting(
        "", "Name or ARN of an EventBridge bus, which is told of every task that has ended; unset: none"
    )
    model_id: str = setting("", "Hub id, folder, single file or `s3://bucket/prefix`; unset means the built-in model")
    model_config: str = setting(
        "", "Hub id, folder or `s3://bucket/prefix` of the configuration of a model that is a single file"
    )
    model_revision: str = setting("", "Pins a hub model to a commit, tag or branch")
    device: str = setting("auto", "`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes CUDA where there is one")
    dtype: str = setting(
        "auto",
        "Weights' type; `auto`: on CUDA the 16 bits that they are stored in, else float16 for a UNet and bfloat16 for "
        "a transformer; on a CPU bfloat16 if it computes in it, else float32",
        one_of=("auto", "float32", "bfloat16", "float16"),
    )
    compile: str = setting(
        "auto",
        "`1`: compiles the denoiser's repeated blocks; slow to load, faster to run; `auto`: on CUDA where it pays",
        one_of=SWITCH,
    )
    graphs: str = setting(
        "auto", "`1`: replays forwards as CUDA graphs; `auto`: on CUDA where that is faster", one_of=SWITCH
    )
    attention: str = setting(
        "auto",
        "Attention of a transformer, by diffusers' name (`native`, `flash`, `sage`); `auto`: on CUDA the fastest of "
        "those that are installed",
    )
    compiled_sha256: str = setting(
        "",
        "SHA-256 (hex) of `compiled.bin` beside the weights, as `darkroom prove` tells it: code, loaded only if it is "
        "this very file",
    )
    max_batch: int = setting(
        0, "Tasks at a time; `0` measures what is worth it when the model has loaded", least=0, most=64
    )
    public_endpoint_url: str = setting("", "URL of S3 for callers, in presigned URLs and forms; unset: the worker's")
    cors_origins: str = setting(
        "", "Origins whose pages may call the HTTP API, with commas (`https://studio.example`), or `*`; unset: none"
    )
    openai_wait: float = setting(
        25.0,
        "Seconds that `POST /v1/images/generations` waits for its pictures; API Gateway gives up after 29",
        least=1,
        most=900,
    )
    url_lifetime: int = setting(3600, "Seconds that a presigned URL is valid", least=1, most=WEEK)
    inline_images: bool = setting(False, "`1`: results carry `image_base64` even when not asked for")
    previews: bool = setting(False, "`1`: running tasks show a thumbnail, one S3 request for each sign of life")
    tenants: str = setting(
        "off",
        "What tells tenants apart: `api-key` (API Gateway's), `iam`, `jwt` (the claim `sub`); "
        "`header` (`X-API-Key`, unproven) on one's own machine",
        one_of=("off", "api-key", "iam", "jwt", "header"),
    )
    tenant_tasks: int = setting(
        0, "Tasks of a tenant that may be pending or running at a time, over HTTP; `0`: any number", least=0, most=10**5
    )
    daily_images: int = setting(
        0, "Images that a tenant may ask for over HTTP in a day (UTC); `0`: any number", least=0, most=10**6
    )
    daily_dollars: float = setting(
        0.0, "Dollars' worth of images likewise, each counted as `IMAGE_DOLLARS`; `0`: any number", least=0, most=10**6
    )
    image_dollars: float = setting(
        0.005, "What one image counts for in `DAILY_DOLLARS`; `darkroom plan` tells", least=0.0001, most=1000
    )
    lease: int = setting(60, "Seconds for which an attempt holds its task without a sign of life", least=5, most=3600)
    beat_every: float = setting(2.0, "Seconds between progress writes of a running task", least=0.1, most=60)
    first_beat: float = setting(
        10.0,
        "Seconds until a task's first progress write, at most a third of `LEASE`; shorter tasks cost no request for it",
        least=0,
        most=600,
    )
    checkpoint_every: float = setting(
        0.0,
        "Seconds between checkpoints of a running task, which bound what a hard kill costs; `0`: none",
        least=0,
        most=3600,
    )
    shutdown_grace: float = setting(
        25.0,
        "Seconds that a worker has to end when told to; below what its host allows (ECS: `stopTimeout`)",
        least=2,
        most=3600,
    )
    max_tries: int = setting(
        5,
        "Attempts of a task that may end by its own fault, or without a step saved, until it fails",
        least=1,
        most=100,
    )
    max_task_seconds: float = setting(
        0.0, "Seconds of drawing, over all attempts, after which a task fails; `0`: any number", least=0, most=10**7
    )
    step_limit: float = setting(
        120.0,
        "Seconds without a step, or 20 times the usual ones if that is more, after which a worker counts as broken",
        least=1,
        most=24 * 3600,
    )
    stuck_after: float = setting(
        900.0, "Seconds without a move after which `doctor` looks at a task", least=60, most=14 * 24 * 3600
    )
    stop_file: str = setting("", "A file whose appearance stops the worker as SIGTERM does")
    alive_file: str = setting(
        "", "A file that the worker touches every few seconds; `python -m handler.work.liveness` looks at it"
    )
    spot_notices: bool = setting(False, "`1` on EC2 spot instances: the worker looks for interruption notices")
    retention_days: int = setting(30, "Days until a task's `expires_at`", least=1, most=3650)
    log_prompts: bool = setting(False, "`1`: prompts are logged; without it no line of the log holds any")
    metrics: bool = setting(
        False, "`1`: metrics in CloudWatch's embedded format on stdout, where CloudWatch Logs finds them"
    )
    log_level: str = setting("INFO", "Least level of the JSON log", one_of=("DEBUG", "INFO", "WARNING", "ERROR"))
    cache_dir: str = setting(
        "/tmp/darkroom",  # noqa: S108
        "Where models from S3, and what was proven of models, are kept on this machine",
    )
    darkroom_endpoint: str = setting(
        "",
        "URL of the HTTP API, for client and command line; unset, they use `BUCKET` and `QUEUE_URL` directly",
    )
    darkroom_api_key: str = setting("", "What they send it as `X-API-Key`", secret=True)
    aws_region: str = setting("", "Region; as everywhere in AWS, `AWS_DEFAULT_REGION` or the profile's otherwise")
    aws_endpoint_url: str = setting("", "Another AWS, such as an emulator; unset means the real one")
    aws_endpoint_url_s3: str = setting("", "The same for S3 alone")
    aws_endpoint_url_sqs: str = setting("", "The same for SQS alone")
    aws_endpoint_url_sts: str = setting("", "The same for STS alone, where a web identity is exchanged")
    aws_endpoint_url_eventbridge: str = setting("", "The same for EventBridge alone")
    aws_ignore_configured_endpoint_urls: bool = setting(False, "`true`: none of them counts", one_of=TRUE_OR_FALSE)
    aws_use_fips_endpoint: bool = setting(
        False, "`true`: FIPS endpoints of S3, SQS and EventBridge", one_of=TRUE_OR_FALSE
    )
    aws_use_dualstack_endpoint: bool = setting(False, "`true`: endpoints over IPv6, too", one_of=TRUE_OR_FALSE)
    aws_profile: str = setting("", "Profile of `~/.aws/config` to take credentials, region and endpoints from")
    aws_ec2_metadata_service_endpoint: str = setting("http://169.254.169.254", "Where EC2's metadata is asked for")
    ecs_agent_uri: str = setting("", "Set by ECS: the worker then asks not to be scaled in while it is busy")
    ecs_container_metadata_uri_v4: str = setting(
        "", "Set by ECS: the worker looks there whether its own task is to stop"
    )
    worker_host: str = setting(
        "", "What a worker outside Lambda runs on, as `prices.json` calls it (`g5.xlarge`): for quotes of `?dry_run=1`"
    )
    aws_lambda_function_memory_size: int = setting(
        0, "Set by Lambda: MB of the function, for quotes", least=0, most=1_000_000
    )
    aws_xray_daemon_address: str = setting(
        "", "Where X-Ray's daemon listens (`127.0.0.1:2000`), set by Lambda; attempts of sampled traces are told there"
    )
    aws_lambda_runtime_api: str = setting(
        "", "Set by Lambda: the container then serves the handler that its command names"
    )

    shared_files: bool = False
    """Not a variable: whether a profile, or the files in ``~/.aws``, may say region and endpoints."""
    shared_credentials: bool = False
    """Not a variable: whether credentials come from a profile or from the files in ``~/.aws``."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads ``environ``, by default the process's own. Raises SettingsError, which names every invalid variable."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        faults: list[str] = []
        for spec in variables():
            text = environ.get(spec.name.upper(), "").strip()
            if text:
                try:
                    values[spec.name] = parse(text, type(spec.default), spec.metadata)
                except ValueError as fault:
                    faults.append(f"{spec.name.upper()}={text!r}: {fault}")
        lease, beat = values.get("lease", cls.lease), values.get("beat_every", cls.beat_every)
        if beat > lease / 3:
            faults.append(
                f"BEAT_EVERY={beat:g}: must be at most a third of LEASE={lease}, or a slow call loses the task"
            )
        urls = [name for name in ("public_endpoint_url", *ENDPOINTS) if name in values]
        bad = [name for name in urls if not URL.fullmatch(values[name])]
        faults += [f"{name.upper()}={values[name]!r}: must be a URL, http:// or https:// and a host" for name in bad]
        if faults:
            raise SettingsError("; ".join(faults))
        values.setdefault("aws_region", environ.get("AWS_DEFAULT_REGION", ""))
        files, credentials = shared(environ)
        return cls(**values, shared_files=files, shared_credentials=credentials)

    def require(self, *names: str) -> Settings:
        """Returns these settings. Raises SettingsError if one of the fields ``names`` is empty, with an example."""
        missing = [name for name in names if not getattr(self, name)]
        if missing:
            examples = " ".join(f"{name.upper()}={EXAMPLES[name]}" for name in missing)
            raise SettingsError(f"unset: {', '.join(name.upper() for name in missing)}; for example {examples}")
        return self

    @property
    def other_aws(self) -> dict[str, str]:
        """The variables that name another AWS than the real one, with their URLs; none where they are ignored."""
        named = {name.upper(): getattr(self, name) for name in ENDPOINTS}
        return {} if self.aws_ignore_configured_endpoint_urls else {name: url for name, url in named.items() if url}

    @property
    def model_name(self) -> str:
        return self.model_id or "built-in"

    @property
    def model_source(self) -> str:
        return self.model_id or str(BUILT_IN_MODEL)


def variables() -> list[Field[Any]]:
    """The fields that are environment variables, with ``text``, ``least``, ``most`` and ``one_of`` as metadata."""
    return [spec for spec in fields(Settings) if "text" in spec.metadata]
