"""The template with Zip functions in place of the image, for an emulator without containers.

Each shim puts this checkout and its libraries on the path and hands over to the handler that the image would start.
Where the emulator leaves out what API Gateway says of a caller, the shim says it.
Nothing else changes but three numbers: MiniStack's poller cannot compare the text that a parameter is.
"""

from __future__ import annotations

import sys
import sysconfig
from typing import Any

from .template import INFRA, read

POISON = "poison"
"""A prompt that breaks the pipeline every time, as a fault of the hardware would: it is worth trying again."""
SHIM = """
import sys
sys.path[:0] = [{root!r}, {libraries!r}]
{more}
from {module} import handle
{identity}
"""
KNOWS_KEYS = """
import hashlib
serve = handle
def handle(event, context):
    headers = {name.lower(): value for name, value in event["headers"].items()}
    key = headers.get("x-api-key", "")
    event["requestContext"]["identity"]["apiKeyId"] = hashlib.sha256(key.encode()).hexdigest()[:10] if key else None
    return serve(event, context)
"""
"""API Gateway names the key by its id; MiniStack checks the key and does not, so the shim does in its place."""
BREAKS = f"""
from handler.engine.running import PipelineEngine
develop = PipelineEngine.develop
def breaks(self, request, *args, **kwargs):
    if request.prompt == "{POISON}":
        raise OSError("a fault that passes, perhaps")
    return develop(self, request, *args, **kwargs)
PipelineEngine.develop = breaks
"""
SWAPPED = {"PackageType", "ImageConfig", "Code"}


def shimmed() -> dict[str, Any]:
    """The template's body, with every function's code swapped."""
    body = read("template.yaml")
    for resource in body["Resources"].values():
        if resource["Type"] == "AWS::Lambda::Function":
            properties = resource["Properties"]
            (command,) = properties["ImageConfig"]["Command"]
            module = command.rpartition(".")[0]
            code = SHIM.format(
                root=str(INFRA.parent),
                libraries=sysconfig.get_paths()["purelib"],
                module=module,
                more=BREAKS if module == "handler.generate" else "",
                identity=KNOWS_KEYS if module in {"handler.submit", "handler.status"} else "",
            )
            kept = {name: value for name, value in properties.items() if name not in SWAPPED}
            resource["Properties"] = {
                **kept,
                "Runtime": f"python{sys.version_info.major}.{sys.version_info.minor}",
                "Handler": "index.handle",
                "Code": {"ZipFile": code},
            }
    body["Resources"]["GenerateMapping"]["Properties"]["BatchSize"] = 2
    body["Resources"]["GenerateMapping"]["Properties"]["ScalingConfig"]["MaximumConcurrency"] = 2
    return body
