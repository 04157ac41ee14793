"""What the light handlers weigh, unzipped: their dependencies without torch, installed for themselves, beside boto3.

boto3 counts apart, for Lambda's own runtimes bring it. ``make bench ONLY=weight``; it asks the package index.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import handler

from .report import Report

ROOT = Path(__file__).parents[2]
BOTO = ("boto3", "botocore", "s3transfer", "jmespath", "python_dateutil", "dateutil", "six", "urllib3")
"""boto3 and what it brings."""
LEFT_OUT = ("engine", "model")
"""Of our own package: what light handlers never open. The card is all they need of the model."""
MOST_MB = 30


def size(path: Path) -> int:
    """Bytes; bytecode does not count, for it is made where it runs."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files if one.suffix != ".pyc")


def main() -> None:
    """Prints the table: each package that is larger than a megabyte, and all together."""
    report = Report("weight")
    light = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    constraints = ROOT / "infra" / "constraints.txt"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-compile", "--target", folder, "-c", str(constraints)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *light], check=True)
        sizes = {one.name: size(one) for one in Path(folder).iterdir()}
    boto = sum(weight for name, weight in sizes.items() if name.partition("-")[0].removesuffix(".py") in BOTO)
    package = Path(handler.__file__).parent
    ours = sum(size(one) for one in package.iterdir() if one.name not in {*LEFT_OUT, "__pycache__"})
    rest = sum(sizes.values()) - boto
    for name, weight in sorted(sizes.items(), key=lambda one: -one[1]):
        if weight > 1e6 and name not in BOTO:
            report.add(name, weight / 1e6, "MB")
    report.add("boto3 and what it brings", boto / 1e6, "MB")
    report.add("handlers without engine and model", ours / 1e6, "MB")
    report.add("light package beyond boto3", (rest + ours) / 1e6, "MB", ("at most", MOST_MB))
    report.show()
