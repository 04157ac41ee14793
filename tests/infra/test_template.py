"""The template by itself: linted with all its edges, and in step with the settings, the handlers and their document."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from handler.settings import Settings, variables
from handler.task.budget import RESERVE

from .template import EXAMPLES, FILES, INFRA, Template, api_hash, edges, read

pytestmark = pytest.mark.infra

BODY, ALARMS = read("template.yaml"), read("alarms.yaml")
README = (INFRA / "README.md").read_text()
PSEUDO = {
    "AWS::StackName": "darkroom",
    "AWS::Region": "us-east-1",
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
}
MOST_BYTES = 51_200
"""What CloudFormation takes without a bucket to put the template into first."""
ROOM = 4_096
"""Bytes of these that each template leaves to what is to come."""
MOST_CHARACTERS = {
    ("AWS::ApiGateway::ApiKey", "Name"): 255,
    ("AWS::ApiGateway::RestApi", "Name"): 255,
    ("AWS::ApiGateway::UsagePlan", "UsagePlanName"): 255,
    ("AWS::CloudWatch::Alarm", "AlarmName"): 255,
    ("AWS::CloudWatch::Dashboard", "DashboardName"): 255,
    ("AWS::Lambda::Function", "FunctionName"): 64,
    ("AWS::Logs::LogGroup", "LogGroupName"): 512,
    ("AWS::SNS::Topic", "TopicName"): 256,
    ("AWS::SQS::Queue", "QueueName"): 80,
}
"""Of the names that the templates give, by the services' API references; API Gateway's has none, and gets one here."""
NOT_ON_LAMBDA = {
    "device": "Lambda has processors only",
    "model_config": "a baked or fetched folder holds it beside the single file",
    "compile": "takes longer than an invocation wins",
    "compiled_sha256": "nothing is compiled there",
    "graphs": "CUDA alone has them",
    "attention": "chosen on CUDA alone",
    "shutdown_grace": "for workers: infra/gpu.yaml",
    "ecs_container_metadata_uri_v4": "no ECS",
    "alive_file": "Lambda sees for itself",
    "stop_file": "Lambda stops no worker",
    "spot_notices": "Lambda runs on no spot instance of ours",
    "cache_dir": "/tmp is the one place that can be written to",
    "openai_wait": "its default is what API Gateway waits for",
    "darkroom_endpoint": "for callers",
    "darkroom_api_key": "for callers",
    "aws_region": "Lambda sets it",
    "public_endpoint_url": "S3's own host is public",
    "aws_endpoint_url": "the real AWS",
    "aws_endpoint_url_s3": "the real AWS",
    "aws_endpoint_url_sqs": "the real AWS",
    "aws_endpoint_url_sts": "the real AWS",
    "aws_endpoint_url_eventbridge": "the real AWS",
    "aws_ignore_configured_endpoint_urls": "none is configured",
    "aws_use_fips_endpoint": "for workers elsewhere, and templates of one's own",
    "aws_use_dualstack_endpoint": "functions call over IPv4",
    "aws_profile": "functions have roles",
    "aws_ec2_metadata_service_endpoint": "no EC2",
    "aws_lambda_runtime_api": "Lambda sets it",
    "aws_lambda_function_memory_size": "Lambda sets it",
    "worker_host": "it is Lambda",
    "aws_xray_daemon_address": "Lambda sets it",
    "ecs_agent_uri": "no ECS",
}


def functions(**parameters: str) -> dict[str, dict[str, Any]]:
    template = Template(BODY, {"ImageUri": EXAMPLES["ImageUri"][0], **parameters}, pseudo=PSEUDO)
    return {
        name: one["Properties"] for name, one in template.resources().items() if one["Type"] == "AWS::Lambda::Function"
    }


@pytest.mark.parametrize("file", FILES)
def test_lint_finds_nothing(file: str, tmp_path: Path) -> None:
    """With the defaults, and with every parameter at every edge."""
    command = [str(Path(sys.executable).parent / "cfn-lint")]
    subprocess.run([*command, str(INFRA / file)], check=True, timeout=120)
    paths = []
    body = read(file)
    for number, parameters in enumerate(edges(body)):
        paths.append(tmp_path / f"{number}.json")
        values = {name: as_linted(body["Parameters"][name]["Type"], one) for name, one in parameters.items()}
        deployment = {"template-file-path": str(INFRA / file), "parameters": values, "tags": {}}
        paths[-1].write_text(json.dumps(deployment))
    subprocess.run([*command, "--deployment-files", *map(str, paths)], check=True, timeout=120)


def as_linted(kind: str, value: str) -> str | list[str]:
    """cfn-lint wants lists as such, and in place of a parameter of SSM what that holds."""
    if kind.startswith("AWS::SSM::"):
        return "ami-0123456789abcdef0"
    return value.split(",") if kind.startswith("List<") else value


def test_lint_would_find_a_bad_edge(tmp_path: Path) -> None:
    parameters = {**edges(BODY)[0], "GenerateMemory": "99999"}
    deployment = {"template-file-path": str(INFRA / "template.yaml"), "parameters": parameters, "tags": {}}
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(deployment))
    command = [str(Path(sys.executable).parent / "cfn-lint"), "--deployment-files", str(path)]
    assert b"GenerateMemory" in subprocess.run(command, capture_output=True, timeout=120, check=False).stdout


@pytest.mark.parametrize("file", FILES)
def test_it_can_be_deployed_without_a_bucket(file: str) -> None:
    assert len((INFRA / file).read_bytes()) <= MOST_BYTES - ROOM


def longest_stack() -> str:
    """The longest name that alarms.yaml takes for a stack, and that template.yaml asks for."""
    pattern = ALARMS["Parameters"]["Stack"]["AllowedPattern"]
    name = "a" * next(count for count in range(1, 200) if re.match(pattern, "a" * (count + 1)) is None)
    assert f"name may have {len(name)} characters" in " ".join(BODY["Description"].split())
    return name


def names_of(stack: str) -> dict[tuple[str, str], int]:
    """The longest name of each kind that is made for a stack of this name."""
    found: dict[tuple[str, str], int] = {}
    parameters = {name: one[-1] for name, one in EXAMPLES.items()} | {"Stack": stack, "AccessLog": "true"}
    for body in (BODY, ALARMS):
        given = parameters | {"WithDashboard": "true"}
        for one in Template(body, given, pseudo=PSEUDO | {"AWS::StackName": stack}).resources().values():
            for key, value in one.get("Properties", {}).items():
                if isinstance(value, str) and stack in value and key.endswith("Name") and not value.startswith("<"):
                    kind = (one["Type"], key)
                    found[kind] = max(found.get(kind, 0), len(value))
    return found


def test_every_name_fits_whatever_the_stack_is_called() -> None:
    stack = longest_stack()
    names = names_of(stack)
    assert names.keys() == MOST_CHARACTERS.keys()
    assert {kind for kind, length in names.items() if length > MOST_CHARACTERS[kind]} == set()
    # The bound is no narrower than it has to be.
    assert names_of(stack + "a")["AWS::Lambda::Function", "FunctionName"] == 65


def test_what_outlives_its_stack_outlives_no_stack_that_never_came_up() -> None:
    kept = {name: one["DeletionPolicy"] for name, one in BODY["Resources"].items() if "DeletionPolicy" in one}
    assert kept == {"Bucket": "RetainExceptOnCreate"}
    assert BODY["Resources"]["Bucket"]["UpdateReplacePolicy"] == "Retain"


def test_every_image_of_the_documents_is_built_and_for_which_processor() -> None:
    """Unless told, docker builds for the machine that it runs on."""
    text = README + (INFRA.parent / "README.md").read_text()
    builds = re.findall(r"^docker build .+$", text, re.MULTILINE)
    built = {
        match[2]: match[1] for one in builds if (match := re.search(r"--platform linux/(\S+) .*darkroom:(\S+)\"", one))
    }
    assert built == {"1": "amd64", "1-arm64": "arm64", "1-gpu": "amd64", "1-light": "amd64"}
    assert len(builds) == 5
    deployed = set(re.findall(r"ImageUri=\$REGISTRY/darkroom:([^\"`]+)", text))
    assert deployed - {"2", "2-gpu"} <= built.keys()  # the next one, which an update is shown with


def test_a_new_account_has_room_for_the_door() -> None:
    """Its ten executions are for all its functions at once."""
    assert BODY["Parameters"]["MaxConcurrency"]["Default"] + len(functions()) - 1 < 10


def test_requests_a_day_are_limited_only_where_that_is_asked_for() -> None:
    def plan(**parameters: str) -> dict[str, Any]:
        properties = Template(BODY, parameters, pseudo=PSEUDO).resources()["UsagePlan"]["Properties"]
        assert properties["Throttle"]
        return dict(properties)

    assert "Quota" not in plan()
    assert plan(DailyQuota="1000")["Quota"] == {"Limit": "1000", "Period": "DAY"}


def test_requests_are_logged_only_where_that_is_asked_for() -> None:
    def stage(**parameters: str) -> tuple[dict[str, Any], dict[str, Any]]:
        there = Template(BODY, parameters, {"ApiLog": {"Ref": "/darkroom/it/api"}}, PSEUDO).resources()
        return there["Stage"]["Properties"], there

    without, there = stage()
    assert "AccessLogSetting" not in without
    assert "ApiLog" not in there
    told, there = stage(AccessLog="true")
    assert there["ApiLog"]["Properties"]["LogGroupName"] == "/darkroom/darkroom/api"
    setting = told["AccessLogSetting"]
    assert setting["DestinationArn"] == "arn:aws:logs:us-east-1:123456789012:log-group:/darkroom/it/api"
    line = json.loads(setting["Format"])
    assert {"id", "method", "path", "status"} <= line.keys()
    assert not {name for name in line.values() if "body" in name.lower()}


@pytest.mark.parametrize("file", FILES)
def test_every_parameter_is_described_limited_and_in_a_group(file: str) -> None:
    body = read(file)
    groups = body["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(body["Parameters"])
    free = {"ModelId", "ModelRevision", "InstanceType"}
    for name, parameter in body["Parameters"].items():
        assert parameter["Description"]
        limits = {"AllowedValues", "AllowedPattern", "MinValue"} & parameter.keys()
        assert limits or name in free or parameter["Type"].startswith(("AWS::", "List<AWS::")), name


def test_files_are_taken_only_where_that_is_asked_for() -> None:
    """Else every object's event would go to the account's bus, for nobody."""
    off, on = (Template(BODY, {"RequestFiles": one}).resources() for one in ("false", "true"))
    assert "NotificationConfiguration" not in off["Bucket"]["Properties"]
    assert "NewFiles" not in off
    assert len(off["QueuePolicy"]["Properties"]["PolicyDocument"]["Statement"]) == 1
    assert on["Bucket"]["Properties"]["NotificationConfiguration"] == {
        "EventBridgeConfiguration": {"EventBridgeEnabled": True}
    }
    rule = on["NewFiles"]["Properties"]
    assert rule["EventPattern"]["detail"] == {
        "bucket": {"name": ["<Bucket>"]},
        "object": {"key": [{"wildcard": "requests/*.json"}]},
    }
    assert "EventBusName" not in rule, "S3 tells the account's own bus"
    assert [one["Arn"] for one in rule["Targets"]] == ["<Queue.Arn>"]
    _, allowed = on["QueuePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (allowed["Action"], allowed["Principal"]) == ("sqs:SendMessage", {"Service": "events.amazonaws.com"})
    assert allowed["Condition"] == {"ArnEquals": {"aws:SourceArn": "<NewFiles.Arn>"}}


def test_a_door_is_told_all_that_its_answers_depend_on() -> None:
    """The doors alone answer with URLs; Submit does, in OpenAI's form."""
    for name in ("Submit", "Status"):
        assert {"URL_LIFETIME", "CORS_ORIGINS", "TENANTS"} <= functions()[name]["Environment"]["Variables"].keys(), name


def test_every_variable_is_a_setting_and_every_setting_a_variable() -> None:
    settings = {spec.name.upper() for spec in variables()}
    used: set[str] = set()
    for properties in functions(ModelId="/opt/model", ModelRevision="main").values():
        used |= properties["Environment"]["Variables"].keys()
    assert used - settings == set()
    assert settings - used == {name.upper() for name in NOT_ON_LAMBDA}


@pytest.mark.parametrize("parameters", edges(BODY))
def test_the_settings_take_every_edge(parameters: dict[str, str]) -> None:
    for properties in functions(**parameters).values():
        texts = {name: str(value) for name, value in properties["Environment"]["Variables"].items()}
        Settings.load(texts)


def test_the_defaults_are_the_settings_own() -> None:
    for properties in functions().values():
        texts = {name: str(value) for name, value in properties["Environment"]["Variables"].items()}
        deployed = {"BUCKET", "QUEUE_URL", "DEAD_LETTER_URL", "METRICS"}
        own = {name: value for name, value in texts.items() if name not in deployed}
        assert Settings.load(own) == Settings.load({})


def test_limits_agree() -> None:
    """Visibility, time-outs, leases: for every time-out and the longest lease that can be asked for."""
    longest = BODY["Parameters"]["Lease"]["MaxValue"]
    shortest = BODY["Parameters"]["Lease"]["MinValue"]
    assert BODY["Parameters"]["BeatEvery"]["MaxValue"] <= shortest / 3
    for timeout in BODY["Parameters"]["GenerateTimeout"]["AllowedValues"]:
        chosen = Template(BODY, {"GenerateTimeout": timeout}, pseudo=PSEUDO).resources()
        visibility = chosen["Queue"]["Properties"]["VisibilityTimeout"]
        assert visibility == int(timeout) + longest
        alarms = Template(ALARMS, {"GenerateTimeout": timeout}, pseudo=PSEUDO).resources()
        near = alarms["NearTimeoutAlarm"]["Properties"]["Threshold"] / 1000
        assert int(timeout) - RESERVE < near < int(timeout)
    resources = Template(BODY, pseudo=PSEUDO).resources()
    dead = resources["DeadLetters"]["Properties"]
    assert dead["VisibilityTimeout"] >= 6 * resources["DeadLetter"]["Properties"]["Timeout"]
    assert dead["MessageRetentionPeriod"] > resources["Queue"]["Properties"]["MessageRetentionPeriod"]
    for name in ("Submit", "Status"):  # API Gateway gives up after 29 s
        assert resources[name]["Properties"]["Timeout"] <= 29
    assert resources["Doctor"]["Properties"]["Timeout"] < 600  # its next round


def test_objects_live_as_long_as_the_settings_say() -> None:
    rules = Template(BODY, {"RetentionDays": "9"}, pseudo=PSEUDO).resources()["Bucket"]["Properties"]
    days = {rule.get("Prefix"): rule.get("ExpirationInDays") for rule in rules["LifecycleConfiguration"]["Rules"]}
    prefixes = ("tasks/", "index/", "tenants/", "uploads/", "spend/")
    assert days == {None: None} | dict.fromkeys(prefixes, "9")


def test_every_handler_can_be_called() -> None:
    named = {properties["ImageConfig"]["Command"][0] for properties in functions().values()}
    assert len(named) == 5
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_a_changed_api_is_a_new_deployment() -> None:
    """Else the stage would go on serving the methods as they were."""
    names = [name for name, one in BODY["Resources"].items() if one["Type"] == "AWS::ApiGateway::Deployment"]
    assert sorted(names) == [f"DeploymentIam{api_hash(BODY)}", f"DeploymentKeys{api_hash(BODY)}"]
    kinds = {"AWS::ApiGateway::Method", "AWS::ApiGateway::GatewayResponse"}
    for name, auth in zip(sorted(names), ("Iam", "ApiKey"), strict=True):
        there = Template(BODY, {"Auth": auth}, pseudo=PSEUDO).resources()
        assert set(there[name]["DependsOn"]) == {key for key, one in there.items() if one["Type"] in kinds}


def methods(auth: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The API's methods by path and name."""
    there = Template(BODY, {"Auth": auth}, pseudo=PSEUDO).resources()

    def path(reference: str) -> str:
        name = reference.strip("<>")
        if name == "Api.RootResourceId":
            return ""
        return f"{path(there[name]['Properties']['ParentId'])}/{there[name]['Properties']['PathPart']}"

    found = [one["Properties"] for one in there.values() if one["Type"] == "AWS::ApiGateway::Method"]
    return {(path(one["ResourceId"]) or "/", one["HttpMethod"]): one for one in found}


@pytest.mark.parametrize("auth", ["ApiKey", "Iam"])
def test_all_paths_lead_to_the_handler_that_serves_them(auth: str) -> None:
    """What the template routes by method alone, the handlers route by path: so both have to agree on the methods."""
    from handler.contract.paths import PATHS

    every = methods(auth)
    for method in ("ANY", "POST", "DELETE"):
        wanted = "Status" if method == "ANY" else "Submit"
        assert f"<{wanted}.Arn>" in every["/{proxy+}", method]["Integration"]["Uri"]
    assert {one for taken in PATHS.values() for one in taken} <= {"GET", "POST", "DELETE"}
    assert {key for key in every if key[0] != "/{proxy+}"} == (PUBLIC if auth == "ApiKey" else set())


PUBLIC = {("/", "ANY"), ("/page/{proxy+}", "ANY")}
"""HEAD and OPTIONS too, and what is not allowed is told by us, with what is."""


@pytest.mark.parametrize("auth", ["ApiKey", "Iam"])
def test_only_the_page_is_public(auth: str) -> None:
    for key, one in methods(auth).items():
        guarded = one.get("ApiKeyRequired") is True if auth == "ApiKey" else one["AuthorizationType"] == "AWS_IAM"
        # A browser asks OPTIONS before another page may call, and sends neither key nor signature with that.
        assert guarded is (key not in PUBLIC and key[1] != "OPTIONS"), key


def test_what_the_gateway_refuses_has_the_envelope_of_everything_else() -> None:
    from handler.contract.responses import ErrorResponse

    there = Template(BODY, pseudo=PSEUDO).resources().values()
    answers = [one["Properties"] for one in there if one["Type"] == "AWS::ApiGateway::GatewayResponse"]
    assert {one["ResponseType"] for one in answers} == {"DEFAULT_4XX", "DEFAULT_5XX", "THROTTLED", "QUOTA_EXCEEDED"}
    for one in answers:
        text = one["ResponseTemplates"]["application/json"].replace("$context.error.messageString", '"Forbidden"')
        assert ErrorResponse.model_validate_json(text).error.message == "Forbidden"
        late = one["ResponseType"] in {"THROTTLED", "QUOTA_EXCEEDED"}
        headers = one["ResponseParameters"]
        assert ("gatewayresponse.header.Retry-After" in headers) is late
        # A page that may call reads why it was refused, and when to come again.
        assert headers["gatewayresponse.header.Access-Control-Allow-Origin"] == "'*'"
        assert ("Retry-After" in headers.get("gatewayresponse.header.Access-Control-Expose-Headers", "")) is late


def test_the_status_function_outlasts_a_long_poll() -> None:
    from handler.api.results import MARGIN
    from handler.contract.paging import MAX_WAIT

    assert functions()["Status"]["Timeout"] >= MAX_WAIT + MARGIN + 2


@pytest.mark.parametrize(("auth", "kind"), [("ApiKey", "api-key"), ("Iam", "iam")])
def test_tenants_are_told_apart_as_callers_are(auth: str, kind: str) -> None:
    """By both doors in the same way, or nobody would find what he submitted."""
    for wanted, tenants in (("false", "off"), ("true", kind)):
        made = functions(Auth=auth, Tenants=wanted)
        told = [made[name]["Environment"]["Variables"]["TENANTS"] for name in ("Submit", "Status")]
        assert told == [tenants, tenants]


def test_the_dashboard_fits_together() -> None:
    template = Template(ALARMS, {"WithDashboard": "true"}, pseudo=PSEUDO)
    body = json.loads(template.resources()["Dashboard"]["Properties"]["DashboardBody"])
    places = {(widget["x"], widget["y"]) for widget in body["widgets"]}
    assert len(places) == len(body["widgets"]) == 12
    text = json.dumps(body)
    for metric in METRICS.split():
        assert metric in text


def test_what_the_alarms_name_is_what_the_stack_makes() -> None:
    """They find it by name, so that neither stack has to wait for the other."""
    made = Template(BODY, {"ImageUri": EXAMPLES["ImageUri"][0]}, pseudo=PSEUDO).resources().values()
    kinds = {
        "AWS::SQS::Queue": "QueueName",
        "AWS::Lambda::Function": "FunctionName",
        "AWS::ApiGateway::RestApi": "Name",
    }
    there = {one["Properties"][kinds[one["Type"]]] for one in made if one["Type"] in kinds}
    text = json.dumps(Template(ALARMS, {"Stack": "darkroom", "WithDashboard": "true"}, pseudo=PSEUDO).resources())
    named = re.findall(r'"Name": "(?:QueueName|FunctionName|ApiName)", "Value": "([^"]+)"', text)
    named += re.findall(r'\\"(?:QueueName|FunctionName|ApiName)\\",\\"([^"\\]+)\\"', text)
    assert len(named) > 15
    assert set(named) <= there


def test_the_alarms_are_told_of_the_same_function() -> None:
    for name in ("Architecture", "GenerateMemory", "GenerateTimeout"):
        kept = {key: value for key, value in ALARMS["Parameters"][name].items() if key != "Description"}
        assert kept == {key: value for key, value in BODY["Parameters"][name].items() if key != "Description"}


METRICS = """
TasksCompleted TasksFailed TasksRefused TasksCancelled FailedByCode ModelUnavailable
QueueSeconds LoadSeconds TextSeconds DenoiseSeconds DecodeSeconds
EncodeSeconds UploadSeconds TotalSeconds BatchSize Forwards ResumedSteps WastedSteps ColdStarts ImageBytes Images
"""
