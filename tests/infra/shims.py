"""The template with Zip functions in place of the image, for an emulator without containers.

Each shim puts this checkout and its libraries on the path and hands over to the handler that the image would start.
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
"""
BREAKS = f"""
from handler.engine.running import PipelineEngine
develop = PipelineEngine.develop
def breaks(self, request, *args, **kwargs):
    if request.prompt == "{POISON}":
        raise OSError("a fault that passes, perhaps")
    return develop(self, request, *args, **kwargs)
PipelineEngine.develop = breaks
"""
RECEIVES = 2
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
    body["Resources"]["Queue"]["Properties"]["RedrivePolicy"]["maxReceiveCount"] = RECEIVES
    return body
