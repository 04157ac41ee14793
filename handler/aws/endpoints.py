"""Where S3, SQS and EventBridge are, as boto3 finds it: partitions, FIPS, dual stack, addressing styles, variables and
profiles.

For S3 these are botocore's rules in short, over its own table of partitions: obstore has none, and to load botocore
takes 170 ms. ``tests/aws/test_endpoints.py`` holds them against boto3.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from ..errors import SettingsError

if TYPE_CHECKING:
    from ..settings import Settings

DEFAULT_REGION = "us-east-1"
LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"


@dataclass(frozen=True)
class Choice:
    """What variables and profile say of a service's endpoint."""

    region: str
    url: str
    """An endpoint other than AWS's own; "" for that."""
    fips: bool
    dualstack: bool
    style: str
    """S3's ``addressing_style``: ``auto``, ``path`` or ``virtual``."""


@dataclass(frozen=True)
class BucketEndpoint:
    """Where a bucket is. ``url`` names it only if ``virtual`` (as a part of the host), else the path does."""

    url: str
    virtual: bool
    region: str
    sts: str
    """Where a web identity is exchanged for credentials."""


def session_of(settings: Settings) -> Any:
    """botocore's session for what the shared files may say; None, and botocore not loaded, where there are none."""
    if not (settings.shared_files or settings.aws_profile):
        return None
    import botocore.session

    return botocore.session.Session(profile=settings.aws_profile or None)


def of_bucket(bucket: str, settings: Settings, session: Any, *, public: bool = False) -> BucketEndpoint:
    """The bucket's endpoint; with ``public`` the one that signed URLs name. Raises SettingsError.

    As in boto3, an endpoint of one's own is in path style, unless the profile wants ``virtual``; AWS's own in
    virtual-hosted style, unless the profile wants ``path``. A bucket whose name makes no host is in the path.
    """
    found = choice("s3", settings, session)
    own = (settings.public_endpoint_url if public else "") or found.url
    url = own.rstrip("/") or f"https://{_host(found)}"
    sts = choice("sts", settings, session).url or f"https://sts.{found.region}.{_partition(found.region)['dnsSuffix']}"
    virtual = found.style == "virtual" if own else found.style != "path"
    if not virtual or not _makes_a_host(bucket, url):
        return BucketEndpoint(url, False, found.region, sts)
    return BucketEndpoint(url.replace("://", f"://{bucket}.", 1), True, found.region, sts)


def client(
    service: Literal["s3", "sqs", "events"],
    settings: Settings,
    session: Any,
    *,
    public: bool = False,
    **config: Any,
) -> Any:
    """botocore's client of the same endpoint, for S3 of the settings' bucket; ``config`` as its ``Config`` takes it.

    Raises SettingsError for an unknown profile, and what botocore raises for what it cannot take.
    """
    from botocore.config import Config

    # The variables and sections of profiles call it by its other name.
    found = choice("eventbridge" if service == "events" else service, settings, session)
    own = (settings.public_endpoint_url if public else "") or found.url
    if service == "s3":
        # The regional endpoint: S3's global one answers for a new bucket with a redirect, on which browsers drop forms.
        style = "virtual" if of_bucket(settings.bucket, settings, session, public=public).virtual else "path"
        config["s3"] = {"addressing_style": style, "us_east_1_regional_endpoint": "regional"}
    config |= {
        "use_fips_endpoint": found.fips,
        "use_dualstack_endpoint": found.dualstack,
        "ignore_configured_endpoint_urls": True,  # `choice` has looked at them
    }
    return session.create_client(service, region_name=found.region, endpoint_url=own or None, config=Config(**config))


def choice(service: Literal["s3", "sqs", "sts", "eventbridge"], settings: Settings, session: Any) -> Choice:
    """What the settings say, and after them the profile, if there is a ``session`` to read it.

    Raises SettingsError for an unknown profile, and for a region that is none.
    """
    profile = _Profile(service, settings, session) if session else None
    region = settings.aws_region or (profile.region if profile else "") or DEFAULT_REGION
    plain = region.replace("fips-", "").replace("-fips", "")  # botocore's old names of FIPS endpoints
    if not re.fullmatch(LABEL, plain):
        raise SettingsError(f"AWS_REGION={region!r}: no region has such a name")
    url: str = getattr(settings, f"aws_endpoint_url_{service}") or settings.aws_endpoint_url
    url = url or (profile.url if profile else "")
    ignored = settings.aws_ignore_configured_endpoint_urls or (profile is not None and profile.ignores)
    return Choice(
        region=plain,
        url="" if ignored else url,
        fips=settings.aws_use_fips_endpoint or plain != region or (profile is not None and profile.fips),
        dualstack=profile.dualstack if profile else settings.aws_use_dualstack_endpoint,
        style=profile.style if profile else "auto",
    )


class _Profile:
    """What the shared files say, as botocore reads them; the variables of the environment have been merged in."""

    def __init__(self, service: str, settings: Settings, session: Any) -> None:
        from botocore.exceptions import BotoCoreError

        try:
            said, variable = session.get_scoped_config(), session.get_config_variable
            self.region: str = variable("region") or ""
            self.ignores = bool(variable("ignore_configured_endpoint_urls"))
            self.fips = bool(variable("use_fips_endpoint"))
            self.dualstack = settings.aws_use_dualstack_endpoint or bool(variable("use_dualstack_endpoint"))
            services = session.full_config.get("services", {})
        except BotoCoreError as fault:
            raise SettingsError(f"AWS_PROFILE={settings.aws_profile!r}: {fault}") from fault
        name = said.get("services")
        if name and name not in services:
            raise SettingsError(f"AWS_PROFILE={settings.aws_profile!r}: there is no section [services {name}]")
        own = services.get(name, {}).get(service, {})
        self.url: str = own.get("endpoint_url") or said.get("endpoint_url") or ""
        s3 = said.get("s3", {}) if service == "s3" and isinstance(said.get("s3"), dict) else {}
        self.style: str = s3.get("addressing_style", "auto")
        self.dualstack = self.dualstack or s3.get("use_dualstack_endpoint", "").lower() == "true"


def _host(found: Choice) -> str:
    partition = _partition(found.region)
    if found.fips and partition["name"] == "aws-cn":
        raise SettingsError("AWS_USE_FIPS_ENDPOINT: S3 has no FIPS endpoints in China")
    fips, dualstack = "-fips" * found.fips, ".dualstack" * found.dualstack
    return f"s3{fips}{dualstack}.{found.region}.{partition['dnsSuffix']}"


def _makes_a_host(bucket: str, url: str) -> bool:
    """Whether the bucket's name can stand before this host. Not one with dots over https: certificates are for one."""
    parts = urlsplit(url)
    labels = bucket.split(".") if parts.scheme == "http" else [bucket]
    if _is_ip(parts.hostname or "") or _is_ip(bucket) or len(bucket) < 3 or bucket != bucket.lower():
        return False
    return all(re.fullmatch(LABEL, label) for label in labels)


def _is_ip(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def _partition(region: str) -> dict[str, Any]:
    """What AWS calls itself around this region: ``name``, ``dnsSuffix``. An unknown region is of the first one, aws."""
    partitions = _partitions()
    by_name = (one for one in partitions if region in one["regions"])
    by_form = (one for one in partitions if re.match(one["regionRegex"], region))
    found = next(by_name, None) or next(by_form, partitions[0])
    return dict(found["outputs"])


@cache
def _partitions() -> list[Any]:
    """botocore's table, read without importing botocore."""
    spec = find_spec("botocore")
    if spec is None or spec.origin is None:
        raise SettingsError("botocore is not installed")
    table = json.loads((Path(spec.origin).parent / "data/partitions.json").read_text())
    return list(table["partitions"])
