"""What an emulator made, asked from its services one by one and put into the template's words.

One function for each type of resource; each returns the properties that it could read.
"""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stacks import Aws, Stack

Properties = dict[str, Any]


def differences(stack: Stack) -> tuple[set[str], set[str]]:
    """The resources that are not there at all, and ``Type.Property`` wherever what is there is not what was asked."""
    missing, differing = set(), set()
    for name, resource in stack.template.resources().items():
        kind, wanted = resource["Type"], resource.get("Properties", {})
        identity = stack.physical.get(name)
        if identity is None:
            missing.add(kind)
            continue
        seen = READERS[kind](stack.aws, identity, wanted)
        differing |= {f"{kind}.{key}" for key, value in wanted.items() if not same(value, seen.get(key))}
    return missing, differing


def same(wanted: Any, seen: Any) -> bool:
    """Services answer numbers as text and the other way round, and add what nobody asked for."""
    if isinstance(wanted, dict):
        return isinstance(seen, dict) and all(same(value, seen.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(seen, list):
            return same(wanted[0], seen) if len(wanted) == 1 else False
        return len(wanted) == len(seen) and all(map(same, wanted, seen))
    if isinstance(seen, list):
        return len(seen) == 1 and same(wanted, seen[0])
    return _plain(wanted) == _plain(seen)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def ask(call: Callable[..., Any], *path: str, **arguments: Any) -> Any:
    """The answer, or the part of it at ``path``; None where the service says that there is nothing."""
    try:
        answer = call(**arguments)
    except ClientError:
        return None
    for step in path:
        answer = answer.get(step) if isinstance(answer, dict) else None
    return answer


def _bucket(aws: Aws, name: str, _: Properties) -> Properties:
    s3 = aws.client("s3")
    encryption = ask(s3.get_bucket_encryption, "ServerSideEncryptionConfiguration", "Rules", Bucket=name) or []
    events = ask(s3.get_bucket_notification_configuration, "EventBridgeConfiguration", Bucket=name)
    lifecycle = ask(s3.get_bucket_lifecycle_configuration, "Rules", Bucket=name) or []
    return {
        "BucketEncryption": {
            "ServerSideEncryptionConfiguration": [
                {"ServerSideEncryptionByDefault": one["ApplyServerSideEncryptionByDefault"], **one}
                for one in encryption
            ]
        },
        "PublicAccessBlockConfiguration": ask(
            s3.get_public_access_block, "PublicAccessBlockConfiguration", Bucket=name
        ),
        "OwnershipControls": ask(s3.get_bucket_ownership_controls, "OwnershipControls", Bucket=name),
        "CorsConfiguration": {"CorsRules": ask(s3.get_bucket_cors, "CORSRules", Bucket=name)},
        "LifecycleConfiguration": {"Rules": [_rule(one) for one in lifecycle]},
        "NotificationConfiguration": {"EventBridgeConfiguration": {"EventBridgeEnabled": events is not None}},
    }


def _rule(one: Properties) -> Properties:
    return {
        "Id": one["ID"],
        "Status": one["Status"],
        "Prefix": one.get("Prefix", one.get("Filter", {}).get("Prefix")),
        "ExpirationInDays": one.get("Expiration", {}).get("Days"),
        "AbortIncompleteMultipartUpload": one.get("AbortIncompleteMultipartUpload"),
    }


def _bucket_policy(aws: Aws, _: str, wanted: Properties) -> Properties:
    text = ask(aws.client("s3").get_bucket_policy, "Policy", Bucket=wanted["Bucket"])
    return {"Bucket": wanted["Bucket"], "PolicyDocument": json.loads(text or "null")}


def _queue(aws: Aws, url: str, _: Properties) -> Properties:
    seen = aws.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    parsed = {name: json.loads(seen[name]) for name in ("RedrivePolicy", "RedriveAllowPolicy") if name in seen}
    return {**seen, **parsed, "QueueName": seen["QueueArn"].rpartition(":")[2]}


def _queue_policy(aws: Aws, _: str, wanted: Properties) -> Properties:
    (url,) = wanted["Queues"]
    text = ask(aws.client("sqs").get_queue_attributes, "Attributes", "Policy", QueueUrl=url, AttributeNames=["All"])
    return {"Queues": [url], "PolicyDocument": json.loads(text or "null")}


def _role(aws: Aws, name: str, wanted: Properties) -> Properties:
    iam = aws.client("iam")
    return {
        "AssumeRolePolicyDocument": iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"],
        "Policies": [
            {
                "PolicyName": one["PolicyName"],
                "PolicyDocument": document(
                    ask(iam.get_role_policy, "PolicyDocument", RoleName=name, PolicyName=one["PolicyName"])
                ),
            }
            for one in wanted.get("Policies", [])
        ],
    }


def document(value: Any) -> Any:
    """A policy. moto keeps those that came by CloudFormation as Python would print them."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith('{"') else ast.literal_eval(value)


def _policy(aws: Aws, _: str, wanted: Properties) -> Properties:
    """In each of its roles; the last difference found stands for all."""
    iam, name = aws.client("iam"), wanted["PolicyName"]
    roles = [one for one in wanted["Roles"] if name in iam.list_role_policies(RoleName=one)["PolicyNames"]]
    documents = [document(iam.get_role_policy(RoleName=one, PolicyName=name)["PolicyDocument"]) for one in roles]
    different = [one for one in documents if not same(wanted["PolicyDocument"], one)]
    return {"PolicyName": name, "Roles": roles, "PolicyDocument": (different or documents or [None])[-1]}


def _managed_policy(aws: Aws, arn: str, _: Properties) -> Properties:
    iam = aws.client("iam")
    policy = iam.get_policy(PolicyArn=arn)["Policy"]
    version = iam.get_policy_version(PolicyArn=arn, VersionId=policy["DefaultVersionId"])["PolicyVersion"]
    return {"Description": policy.get("Description"), "PolicyDocument": document(version["Document"])}


def _log_group(aws: Aws, name: str, _: Properties) -> Properties:
    (group,) = aws.client("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    return {"LogGroupName": group["logGroupName"], "RetentionInDays": group.get("retentionInDays")}


def _function(aws: Aws, name: str, _: Properties) -> Properties:
    seen = aws.client("lambda").get_function(FunctionName=name)
    config = seen["Configuration"]
    return {
        **config,
        "Code": {"ImageUri": seen["Code"].get("ImageUri")},
        "ImageConfig": config.get("ImageConfigResponse", {}).get("ImageConfig"),
    }


def _mapping(aws: Aws, uuid: str, _: Properties) -> Properties:
    seen = aws.client("lambda").get_event_source_mapping(UUID=uuid)
    name = seen["FunctionArn"].rpartition(":")[2]
    return {**seen, "FunctionName": name, "Enabled": seen.get("State") in {"Enabled", "Enabling", "Creating"}}


def _permission(aws: Aws, _: str, wanted: Properties) -> Properties:
    text = ask(aws.client("lambda").get_policy, "Policy", FunctionName=wanted["FunctionName"])
    for one in json.loads(text or "{}").get("Statement", []):
        source = (one.get("Condition", {}).get("ArnLike") or {}).get("AWS:SourceArn")
        if source == wanted["SourceArn"]:
            return {
                "FunctionName": one["Resource"].rpartition(":")[2],
                "Action": one["Action"],
                "Principal": one["Principal"].get("Service"),
                "SourceArn": source,
            }
    return {}


def _event_rule(aws: Aws, name: str, _: Properties) -> Properties:
    events, name = aws.client("events"), name.rpartition("|")[2]
    told: Properties = events.describe_rule(Name=name)
    if told.get("EventPattern"):
        told["EventPattern"] = json.loads(told["EventPattern"])
    return {**told, "Targets": events.list_targets_by_rule(Rule=name)["Targets"]}


def _topic(aws: Aws, arn: str, _: Properties) -> Properties:
    found = aws.client("sns").list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
    return {"TopicName": arn.rpartition(":")[2], "Subscription": found}


def _alarm(aws: Aws, name: str, _: Properties) -> Properties:
    (alarm,) = aws.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]
    seen: Properties = alarm
    return seen


def _dashboard(aws: Aws, name: str, wanted: Properties) -> Properties:
    seen = aws.client("cloudwatch").get_dashboard(DashboardName=name)
    same_body = json.loads(seen["DashboardBody"]) == json.loads(wanted["DashboardBody"])
    return {"DashboardName": seen["DashboardName"], "DashboardBody": wanted["DashboardBody"] if same_body else None}


def _api(aws: Aws, identity: str, _: Properties) -> Properties:
    seen = aws.client("apigateway").get_rest_api(restApiId=identity)
    return {
        "Name": seen["name"],
        "Description": seen.get("description"),
        "EndpointConfiguration": {"Types": seen.get("endpointConfiguration", {}).get("types")},
        "ApiKeySourceType": seen.get("apiKeySource"),
    }


def _api_resource(aws: Aws, identity: str, wanted: Properties) -> Properties:
    seen = aws.client("apigateway").get_resource(restApiId=wanted["RestApiId"], resourceId=identity)
    return {"RestApiId": wanted["RestApiId"], "ParentId": seen["parentId"], "PathPart": seen["pathPart"]}


def _api_method(aws: Aws, _: str, wanted: Properties) -> Properties:
    where = {"restApiId": wanted["RestApiId"], "resourceId": wanted["ResourceId"], "httpMethod": wanted["HttpMethod"]}
    seen = ask(aws.client("apigateway").get_method, **where) or {}
    integration = seen.get("methodIntegration", {})
    return {
        "RestApiId": wanted["RestApiId"],
        "ResourceId": wanted["ResourceId"],
        "HttpMethod": seen.get("httpMethod"),
        "AuthorizationType": seen.get("authorizationType"),
        "ApiKeyRequired": seen.get("apiKeyRequired"),
        "RequestParameters": seen.get("requestParameters"),
        "Integration": {
            "Type": integration.get("type"),
            "IntegrationHttpMethod": integration.get("httpMethod"),
            "Uri": integration.get("uri"),
        },
    }


def _api_refusal(aws: Aws, _: str, wanted: Properties) -> Properties:
    seen = ask(
        aws.client("apigateway").get_gateway_response,
        restApiId=wanted["RestApiId"],
        responseType=wanted["ResponseType"],
    )
    if seen is None or seen.get("defaultResponse"):
        return {}
    return {
        "RestApiId": wanted["RestApiId"],
        "ResponseType": seen["responseType"],
        "ResponseParameters": seen.get("responseParameters"),
        "ResponseTemplates": seen.get("responseTemplates"),
    }


def _api_deployment(aws: Aws, identity: str, wanted: Properties) -> Properties:
    found = ask(aws.client("apigateway").get_deployment, restApiId=wanted["RestApiId"], deploymentId=identity)
    return {"RestApiId": wanted["RestApiId"] if found else None}


def _api_stage(aws: Aws, _: str, wanted: Properties) -> Properties:
    gateway = aws.client("apigateway")
    seen = gateway.get_stage(restApiId=wanted["RestApiId"], stageName=wanted["StageName"])
    settings = seen.get("methodSettings", {}).get("*/*", {})
    log = seen.get("accessLogSettings", {})
    return {
        "RestApiId": wanted["RestApiId"],
        "DeploymentId": seen["deploymentId"],
        "StageName": seen["stageName"],
        "TracingEnabled": seen.get("tracingEnabled"),
        "AccessLogSetting": {"DestinationArn": log.get("destinationArn"), "Format": log.get("format")},
        "MethodSettings": [
            {
                "ResourcePath": "/*",
                "HttpMethod": "*",
                "ThrottlingRateLimit": settings.get("throttlingRateLimit"),
                "ThrottlingBurstLimit": settings.get("throttlingBurstLimit"),
            }
        ],
    }


def _api_key(aws: Aws, identity: str, _: Properties) -> Properties:
    seen = aws.client("apigateway").get_api_key(apiKey=identity)
    return {"Name": seen["name"], "Enabled": seen["enabled"]}


def _usage_plan(aws: Aws, identity: str, _: Properties) -> Properties:
    seen = aws.client("apigateway").get_usage_plan(usagePlanId=identity)
    quota = seen.get("quota") or {}
    return {
        "UsagePlanName": seen["name"],
        "ApiStages": [{"ApiId": one["apiId"], "Stage": one["stage"]} for one in seen["apiStages"]],
        "Throttle": {"RateLimit": seen["throttle"]["rateLimit"], "BurstLimit": seen["throttle"]["burstLimit"]},
        "Quota": {"Limit": quota.get("limit"), "Period": quota.get("period")},
    }


def _usage_plan_key(aws: Aws, _: str, wanted: Properties) -> Properties:
    plan, key = wanted["UsagePlanId"], wanted["KeyId"]
    seen = aws.client("apigateway").get_usage_plan_key(usagePlanId=plan, keyId=key)
    return {"KeyId": seen["id"], "KeyType": seen["type"], "UsagePlanId": plan}


READERS: dict[str, Callable[[Aws, str, Properties], Properties]] = {
    "AWS::ApiGateway::ApiKey": _api_key,
    "AWS::ApiGateway::Deployment": _api_deployment,
    "AWS::ApiGateway::GatewayResponse": _api_refusal,
    "AWS::ApiGateway::Method": _api_method,
    "AWS::ApiGateway::Resource": _api_resource,
    "AWS::ApiGateway::RestApi": _api,
    "AWS::ApiGateway::Stage": _api_stage,
    "AWS::ApiGateway::UsagePlan": _usage_plan,
    "AWS::ApiGateway::UsagePlanKey": _usage_plan_key,
    "AWS::CloudWatch::Alarm": _alarm,
    "AWS::CloudWatch::Dashboard": _dashboard,
    "AWS::Events::Rule": _event_rule,
    "AWS::IAM::ManagedPolicy": _managed_policy,
    "AWS::IAM::Policy": _policy,
    "AWS::IAM::Role": _role,
    "AWS::Lambda::EventSourceMapping": _mapping,
    "AWS::Lambda::Function": _function,
    "AWS::Lambda::Permission": _permission,
    "AWS::Logs::LogGroup": _log_group,
    "AWS::S3::Bucket": _bucket,
    "AWS::S3::BucketPolicy": _bucket_policy,
    "AWS::SNS::Topic": _topic,
    "AWS::SQS::Queue": _queue,
    "AWS::SQS::QueuePolicy": _queue_policy,
}
