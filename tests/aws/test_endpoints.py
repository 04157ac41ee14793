"""Endpoints are the SDK's: in the same environment the same hosts, styles and presigned URLs as boto3 makes.

What is expected is boto3's own, asked at run time; nothing is sent. boto3 is told two things: to sign as all regions
demand today (SigV4), and to call us-east-1 by its name (AWS_S3_US_EAST_1_REGIONAL_ENDPOINT).
"""

from __future__ import annotations

import os
import re
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointResolutionError, EndpointVariantError

from handler.aws.endpoints import client, of_bucket, session_of
from handler.aws.s3 import PresignedPosts
from handler.aws.store import TaskStore
from handler.errors import SettingsError
from handler.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # some hundred sessions of boto3
BUCKETS = ("my-bucket", "my.dotted.bucket")
NO_HOSTS = ("192.168.0.1", "OldBucket", "old_bucket", "my-bucket-")
"""Buckets' names that cannot be a part of one."""
KEY = "tasks/a task~+é/1/0.png"
REGIONS = {
    "aws": ("us-east-1", "eu-central-1"),
    "cn": ("cn-north-1", "cn-northwest-1"),
    "gov": ("us-gov-west-1", "us-gov-east-1"),
    "iso": ("us-iso-east-1", "us-isob-east-1", "eu-isoe-west-1", "us-isof-south-1"),
    "eusc": ("eusc-de-east-1",),
    "unknown": ("mx-nowhere-7", "us-iso-nowhere-7", "moon-crater-1"),
    "old names": ("fips-us-gov-west-1", "us-gov-east-1-fips", "aws-cn-global", "aws-iso-f-global"),
}
VARIANTS = {
    "": {},
    "fips": {"AWS_USE_FIPS_ENDPOINT": "true"},
    "dualstack": {"AWS_USE_DUALSTACK_ENDPOINT": "True"},
    "both": {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
}
URLS = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
    "AWS_ENDPOINT_URL_S3": "https://minio.example.com/behind/",
    "AWS_ENDPOINT_URL_SQS": "http://localhost:9324",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
}
PROFILES = {
    "region": "region = cn-north-1",
    "fips": "region = us-gov-west-1\nuse_fips_endpoint = true",
    "dualstack": "region = eu-west-1\nuse_dualstack_endpoint = true",
    "dualstack of s3": "region = eu-west-1\ns3 =\n  use_dualstack_endpoint = true",
    "no dualstack of s3": "region = eu-west-1\nuse_dualstack_endpoint = true\ns3 =\n  use_dualstack_endpoint = false",
    "url": "endpoint_url = http://localhost:4566",
    "urls": "endpoint_url = http://localhost:4566\nservices = mine",
    "services": "services = mine",
    "ignored": "endpoint_url = http://localhost:4566\nservices = mine\nignore_configured_endpoint_urls = true",
    "path": "region = eu-west-1\ns3 =\n  addressing_style = path",
    "virtual": "region = eu-west-1\ns3 =\n  addressing_style = virtual",
    "virtual, of one's own": "endpoint_url = https://s3.example.com/under\ns3 =\n  addressing_style = virtual",
    "virtual, over http": "endpoint_url = http://s3.example.com:9000\ns3 =\n  addressing_style = virtual",
    "virtual, of an IP": "endpoint_url = http://127.0.0.1:9000\ns3 =\n  addressing_style = virtual",
    "virtual, of an IPv6": "endpoint_url = http://[::1]:9000\ns3 =\n  addressing_style = virtual",
}
SERVICES = (
    "\n[services mine]\ns3 =\n  endpoint_url = http://localhost:9000\nsqs =\n  endpoint_url = http://localhost:9324\n"
)
OVER = {
    "": {},
    "region": {"AWS_DEFAULT_REGION": "us-iso-east-1"},
    "url": {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
    "of s3": {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:2"},
    "ignored": {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
    "fips": {"AWS_USE_FIPS_ENDPOINT": "true"},
    "no fips": {"AWS_USE_FIPS_ENDPOINT": "false"},
    "no dualstack": {"AWS_USE_DUALSTACK_ENDPOINT": "false"},
}


class Sent(Exception):
    """Stops a request where it would be sent."""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a/token+")
    monkeypatch.setenv("AWS_S3_US_EAST_1_REGIONAL_ENDPOINT", "regional")


@pytest.mark.parametrize(
    ("region", "variant"),
    [
        pytest.param(one, VARIANTS[name], id=f"{one}-{name}")
        for one, name in product(sum(REGIONS.values(), ()), VARIANTS)
    ],
)
def test_partitions(region: str, variant: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    agree(monkeypatch, {"AWS_DEFAULT_REGION": region, **variant})


@pytest.mark.parametrize("style", ["auto", "virtual", "path"])
@pytest.mark.parametrize("url", ["", "http://minio:9000", "https://minio:9000"])
def test_buckets_that_make_no_host(style: str, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(f"[default]\nregion = eu-west-1\ns3 =\n  addressing_style = {style}\n")
    agree(monkeypatch, {"AWS_CONFIG_FILE": str(file), "AWS_ENDPOINT_URL": url}, NO_HOSTS)


@pytest.mark.parametrize("chosen", range(16))
@pytest.mark.parametrize("variant", ["", "both"])
def test_variables_together_and_apart(chosen: int, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: URLS[name] for bit, name in enumerate(URLS) if chosen >> bit & 1}
    agree(monkeypatch, {"AWS_DEFAULT_REGION": "eu-central-1", **some, **VARIANTS[variant]})


@pytest.mark.parametrize(
    ("name", "profile", "over"),
    [*product(["default"], PROFILES, OVER), *product(["profile mine"], PROFILES, ["", "ignored"])],
)
def test_profiles(name: str, profile: str, over: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default one is in ~/.aws and the keys in the environment; the other with its keys in a file of its own."""
    environ = dict(OVER[over])
    text = f"[{name}]\n{PROFILES[profile]}\n"
    file = tmp_path / ".aws/config"
    if name != "default":
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(key)
        text += "aws_access_key_id = AKIAOTHER\naws_secret_access_key = other\n"
        file = tmp_path / "elsewhere"
        environ |= {"AWS_PROFILE": "mine", "AWS_CONFIG_FILE": str(file)}
    file.parent.mkdir(exist_ok=True)
    file.write_text(text + SERVICES)
    agree(monkeypatch, environ)


def test_another_host_for_who_is_handed_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """PUBLIC_ENDPOINT_URL is to URLs and forms what ``endpoint_url`` is to a client of boto3's; calls stay inside."""
    public, inside = "https://pictures.example.com", "http://minio:9000"
    settings = load(monkeypatch, PUBLIC_ENDPOINT_URL=public, AWS_ENDPOINT_URL=inside, BUCKET="my.dotted.bucket")
    expected = signing(boto3.session.Session(), "auto", endpoint_url=public)
    assert same(TaskStore(settings).presign(KEY), of_boto3(expected, settings.bucket)[0])
    url, fields = PresignedPosts(settings).sign(KEY, "image/png", 9, 60)
    form = of_boto3(expected, settings.bucket)[1]
    assert (url, steady(fields)) == (form["url"], steady(form["fields"]))
    assert of_bucket(settings.bucket, settings, None).url == inside


def test_the_profiles_style_is_the_public_hosts_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    public = "https://pictures.example.com/"
    settings = load(monkeypatch, PUBLIC_ENDPOINT_URL=public, AWS_CONFIG_FILE=str(file), BUCKET="my-bucket")
    expected = of_boto3(signing(boto3.session.Session(), "", endpoint_url=public), settings.bucket)
    assert same(TaskStore(settings).presign(KEY), expected[0])
    assert PresignedPosts(settings).sign(KEY, "image/png", 9, 60)[0] == expected[1]["url"]


@pytest.mark.parametrize("region", sum(REGIONS.values(), ()))
def test_a_web_identity_is_exchanged_where_boto3_does(region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for environ in ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, {"AWS_ENDPOINT_URL_STS": "http://127.0.0.1:2"}):
        place = of_bucket("my-bucket", load(monkeypatch, AWS_DEFAULT_REGION=region, **environ), None)
        sts = boto3.session.Session().client("sts", place.region)
        role = {"RoleArn": "arn:aws:iam::123456789012:role/mine", "RoleSessionName": "me", "WebIdentityToken": "token"}
        called = _called(sts, "sts", partial(sts.assume_role_with_web_identity, **role))
        assert place.sts == called.rstrip("/")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_EVENTBRIDGE": "http://127.0.0.1:2"},
        {"AWS_ENDPOINT_URL_EVENTBRIDGE": "http://127.0.0.1:2", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        {"AWS_DEFAULT_REGION": "cn-north-1"},
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_PROFILE": "mine"},
    ],
    ids=", ".join,
)
def test_the_event_bus_is_where_boto3_finds_it(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config"
    section = "[services mine]\neventbridge =\n  endpoint_url = http://localhost:3\n"
    file.write_text(f"[default]\nregion = eu-west-1\n[profile mine]\nregion = us-west-2\nservices = mine\n{section}")
    settings = load(monkeypatch, AWS_CONFIG_FILE=str(file), **environ)
    own = client("events", settings, botocore.session.Session(profile=settings.aws_profile or None))
    assert own.meta.endpoint_url == boto3.session.Session().client("events").meta.endpoint_url


def test_aws_region_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """boto3 alone among AWS's SDKs does not know it; a function of Lambda is told its region by this name, too."""
    file = tmp_path / "config"
    file.write_text("[default]\nregion = eu-west-1\n")
    settings = load(monkeypatch, AWS_CONFIG_FILE=str(file), AWS_DEFAULT_REGION="eu-west-2", AWS_REGION="eu-west-3")
    assert of_bucket("my-bucket", settings, session_of(settings)).url == "https://my-bucket.s3.eu-west-3.amazonaws.com"


@pytest.mark.parametrize(
    ("profile", "environ", "told"),
    [
        ("", {"AWS_PROFILE": "none"}, "AWS_PROFILE='none'"),
        ("services = none", {}, "no section [services none]"),
        ("", {"AWS_DEFAULT_REGION": "eu west/1"}, "AWS_REGION='eu west/1'"),
    ],
)
def test_what_cannot_be_is_told(
    profile: str, environ: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config"
    file.write_text(f"[default]\n{profile}\n")
    settings = load(monkeypatch, AWS_CONFIG_FILE=str(file), BUCKET="my-bucket", **environ)
    with pytest.raises(SettingsError, match=re.escape(told)):
        TaskStore(settings)


def agree(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], buckets: tuple[str, ...] = BUCKETS) -> None:
    """The buckets' URLs and forms, what is called, and the queue, in this environment: ours and boto3's."""
    settings = load(monkeypatch, **environ)
    session = boto3.session.Session()
    own = botocore.session.Session(profile=settings.aws_profile or None)
    try:
        queue = session.client("sqs", region_of(session))
    except EndpointVariantError:  # boto3 makes no client for this region; of neither service
        with pytest.raises(EndpointVariantError):
            client("sqs", settings, own)
        return
    assert queue_called(client("sqs", settings, own)) == queue_called(queue)
    plain = signing(session, "")
    for bucket in buckets:
        here = load(monkeypatch, BUCKET=bucket)
        try:
            called = bucket_called(plain, bucket)
        except EndpointResolutionError:
            with pytest.raises(SettingsError):
                TaskStore(here)
            continue
        signed = TaskStore(here).presign(KEY)
        if re.search(r"[a-z]\.(127|\[)", called):  # boto3 puts a name with dots before an IP, too: no such host exists
            assert urlsplit(signed).path.startswith(f"/{bucket}/")
            continue
        url, form = of_boto3(plain, bucket)
        if url.partition("?")[0] != called:
            # Where nobody names a style boto3 signs for S3's one global host (with FIPS for us-east-1's), which it does
            # not call itself, and which answers for a new bucket with a redirect that breaks the signature.
            url, form = of_boto3(signing(session, "virtual"), bucket)
        assert signed.partition("?")[0] == called
        assert same(signed, url)
        target, fields = PresignedPosts(here).sign(KEY, "image/png", 9, 60)
        assert (target, steady(fields)) == (form["url"], steady(form["fields"]))


def load(monkeypatch: pytest.MonkeyPatch, **environ: str) -> Settings:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def region_of(session: Any) -> str:
    """boto3 has none for SQS where nobody names one; Darkroom's is S3's."""
    return session.region_name or "us-east-1"


def signing(session: Any, style: str, **options: Any) -> Any:
    s3: Any = {"addressing_style": style} if style else None
    config = Config(signature_version="s3v4", s3=s3)
    return session.client("s3", region_of(session), config=config, **options)


def of_boto3(s3: Any, bucket: str) -> tuple[str, dict[str, Any]]:
    """A presigned GET URL and a form."""
    kind = {"Content-Type": "image/png"}
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": KEY}, ExpiresIn=3600)
    return url, s3.generate_presigned_post(bucket, KEY, Fields=dict(kind), Conditions=[kind], ExpiresIn=60)


def bucket_called(s3: Any, bucket: str) -> str:
    return _called(s3, "s3", lambda: s3.get_object(Bucket=bucket, Key=KEY))


def queue_called(sqs: Any) -> str:
    return _called(sqs, "sqs", lambda: sqs.receive_message(QueueUrl="https://sqs.example.com/1/queue"))


def _called(caller: Any, service: str, call: Any) -> str:
    def stop(request: Any, **_: object) -> None:
        raise Sent(request.url)

    caller.meta.events.register(f"before-send.{service}", stop)
    with pytest.raises(Sent) as sent:
        call()
    return str(sent.value)


def same(one: str, other: str) -> bool:
    """Whether presigned URLs are the same but for signature and time."""
    left, right = urlsplit(one), urlsplit(other)
    queries = [steady(dict(parse_qsl(parts.query))) for parts in (left, right)]
    return left._replace(query="") == right._replace(query="") and queries[0] == queries[1]


def steady(fields: dict[str, str]) -> dict[str, str]:
    """Without what every signing makes anew."""
    lower = {name.lower(): value for name, value in fields.items()}
    lower["x-amz-credential"] = re.sub(r"/\d{8}/", "/", lower["x-amz-credential"])
    return {name: value for name, value in lower.items() if name not in {"policy", "x-amz-date", "x-amz-signature"}}
