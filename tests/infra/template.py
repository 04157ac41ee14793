"""CloudFormation templates as Python: read with their short forms, and resolved for given parameters.

An evaluator of our own, so that what an emulator made can be held against what the file says, not against itself.
Source: AWS CloudFormation template reference, intrinsic functions.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

INFRA = Path(__file__).parents[2] / "infra"
FILES = ("template.yaml", "alarms.yaml", "events.yaml", "gpu.yaml")
ABSENT = object()
"""What ``AWS::NoValue`` becomes; the property around it disappears."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with ``!Ref`` and the like, turned into their long forms."""

    def tagged(self, tag: str, node: yaml.Node) -> dict[str, Any]:
        value: Any
        if isinstance(node, yaml.ScalarNode):
            value = self.construct_scalar(node)
        elif isinstance(node, yaml.SequenceNode):
            value = self.construct_sequence(node, deep=True)
        else:
            value = self.construct_mapping(node, deep=True)
        if tag == "GetAtt" and isinstance(value, str):
            value = value.split(".", 1)
        return {tag if tag in {"Ref", "Condition"} else f"Fn::{tag}": value}


yaml.add_multi_constructor("!", lambda loader, tag, node: loader.tagged(tag, node), _Loader)


def read(name: str) -> dict[str, Any]:
    """A template of ``infra/``."""
    loaded: dict[str, Any] = yaml.load((INFRA / name).read_text(), _Loader)
    return loaded


@dataclass
class Template:
    """A template with parameters. ``made``: of each resource that was made its ``Ref``, and attributes by name."""

    body: dict[str, Any]
    parameters: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pseudo: Mapping[str, str] = field(default_factory=dict)

    def resources(self) -> dict[str, dict[str, Any]]:
        """Those whose conditions hold, resolved."""
        return {
            name: self.resolve(resource)
            for name, resource in self.body["Resources"].items()
            if self.holds(resource.get("Condition"))
        }

    def holds(self, condition: str | None) -> bool:
        return condition is None or bool(self.tests(self.body["Conditions"][condition]))

    def parameter(self, name: str) -> str:
        given = self.parameters.get(name, self.body["Parameters"][name].get("Default"))
        return str(given)

    def tests(self, rule: Any) -> bool:
        """A condition, or an assertion of a rule."""
        ((name, value),) = rule.items()
        if name == "Condition":
            return self.holds(value)
        if name == "Fn::Not":
            return not self.tests(value[0])
        if name == "Fn::And":
            return all(self.tests(one) for one in value)
        if name == "Fn::Or":
            return any(self.tests(one) for one in value)
        left, right = (self.resolve(side) for side in value)
        return str(left) == str(right)

    def resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [one for one in map(self.resolve, value) if one is not ABSENT]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name == "Ref":
                return self._ref(argument)
            if name.startswith("Fn::"):
                return self._call(name.removeprefix("Fn::"), argument)
        pairs = {name: self.resolve(one) for name, one in value.items()}
        return {name: one for name, one in pairs.items() if one is not ABSENT}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return ABSENT
        if name in self.pseudo:
            return self.pseudo[name]
        if name in self.body["Parameters"]:
            return self.parameter(name)
        return self.made.get(name, {}).get("Ref", f"<{name}>")

    def _attribute(self, name: str, attribute: str) -> str:
        return self.made.get(name, {}).get(attribute, f"<{name}.{attribute}>")

    def _call(self, name: str, argument: Any) -> Any:  # noqa: PLR0911 - a language's functions, one by one
        if name == "If":
            return self.resolve(argument[1] if self.holds(argument[0]) else argument[2])
        if name == "GetAtt":
            return self._attribute(*argument)
        if name == "FindInMap":
            where, key, second = (self.resolve(one) for one in argument)
            return self.body["Mappings"][where][str(key)][second]
        if name == "Sub":
            text, own = argument if isinstance(argument, list) else (argument, {})
            return re.sub(r"\$\{([A-Za-z0-9:.]+)\}", lambda found: self._sub(found[1], own), text)
        if name == "Select":
            index, among = argument
            return self.resolve(among)[int(index)]
        if name == "Split":
            return self.resolve(argument[1]).split(argument[0])
        if name == "Join":
            return argument[0].join(str(one) for one in self.resolve(argument[1]))
        if name == "ImportValue":
            return f"<import {self.resolve(argument)}>"
        if name == "Base64":
            return self.resolve(argument)
        raise ValueError(f"no such function here: {name}")

    def _sub(self, name: str, own: dict[str, Any]) -> str:
        if name in own:
            return str(self.resolve(own[name]))
        if "." in name:
            return self._attribute(*name.split(".", 1))
        return str(self._ref(name))


def api_hash(body: dict[str, Any]) -> str:
    """Changes with everything that a deployment takes a snapshot of."""
    kinds = {f"AWS::ApiGateway::{kind}" for kind in ("GatewayResponse", "Method", "Resource", "RestApi")}
    parts = {name: one for name, one in body["Resources"].items() if one["Type"] in kinds}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def edges(body: dict[str, Any]) -> list[dict[str, str]]:
    """Sets of parameters in which, taken together, every parameter takes each of its edge values at least once."""
    each = {name: _edge_values(name, one) for name, one in body["Parameters"].items()}
    rounds = max(len(values) for values in each.values())
    return [{name: values[turn % len(values)] for name, values in each.items()} for turn in range(rounds)]


def _edge_values(name: str, parameter: dict[str, Any]) -> list[str]:
    if "AllowedValues" in parameter:
        return [str(one) for one in parameter["AllowedValues"]]
    if "MinValue" in parameter:
        return [str(parameter[edge]) for edge in ("MinValue", "MaxValue", "Default")]
    given = [str(parameter["Default"])] if "Default" in parameter else []
    return given + EXAMPLES.get(name, [])


REGISTRY = "123456789012.dkr.ecr.us-east-1.amazonaws.com/darkroom"
EXAMPLES = {
    "ImageUri": [f"{REGISTRY}:1", f"{REGISTRY}@sha256:{'0' * 64}"],
    "ModelId": ["/opt/model"],
    "ModelInS3": ["models/sd/turbo"],
    "ModelRevision": ["main"],
    "KmsKeyArn": ["arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"],
    "EventBus": ["darkroom"],
    "WebhookUrl": ["https://example.com/hooks/darkroom"],
    "WebhookSecret": ["s3cret"],
    "AlarmEmail": ["somebody@example.com"],
    "RunbookUrl": ["https://example.com/infra/README.md"],
    "Stack": ["darkroom"],
    "VpcId": ["vpc-0123456789abcdef0"],
    "SubnetIds": ["subnet-0123456789abcdef0,subnet-0123456789abcdef1"],
    "VpcCidr": ["10.0.0.0/16"],
    "RouteTableIds": ["rtb-0123456789abcdef0"],
    "InstanceType": ["g6.xlarge"],
    "TracingImage": ["123456789012.dkr.ecr.us-east-1.amazonaws.com/xray:3.x"],
}
"""Values for parameters without limits to try."""
