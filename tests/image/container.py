"""The image's container without a daemon: its root read-only, an empty /tmp, its own user, environment and command.

``buildah run`` knows no read-only root and container runtimes need cgroups that CI's containers do not have. What they
would do is a handful of mounts in a namespace of its own, done here; the network is the host's.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ENTER = """
set -e
root=$1 user=$2 directory=$3 bring=$4; shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777,size=512m tmpfs "$root/tmp"
[ -z "$bring" ] || cp "$bring" "$root/tmp/"
mount -o remount,bind,ro "$root"
cd /
exec chroot --userspec="$user" --groups= "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$directory" "$@"
"""
"""Every step becomes the next one, so the process that was started is the container's own and gets its signals."""


@dataclass(frozen=True)
class Image:
    """A built image, its files under ``root``."""

    root: Path
    config: dict[str, Any]
    layers: dict[str, int]
    """What made each layer, and its bytes."""

    @property
    def command(self) -> list[str]:
        """What a container runs, before its arguments."""
        return list(self.config["Entrypoint"])

    @contextmanager
    def run(
        self, *command: str, environ: Mapping[str, str] | None = None, bring: Path | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Runs ``command`` in a container until the block ends; ``bring`` is a file that it finds in /tmp."""
        baked = dict(pair.split("=", 1) for pair in self.config["Env"])
        user, directory = self.config["User"], self.config["WorkingDir"]
        inside = [str(self.root), user, directory, str(bring or ""), *command]
        child = subprocess.Popen(
            ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", ENTER, "enter", *inside],
            env={**baked, **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield child
        finally:
            child.kill()
            child.communicate()

    def output(self, *command: str, environ: Mapping[str, str] | None = None) -> str:
        """What ``command`` printed, once it has ended well."""
        with self.run(*command, environ=environ) as child:
            text, _ = child.communicate(timeout=60)
        assert child.returncode == 0, text
        return text


def inspect(name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The configuration and the layers of an image."""
    found = json.loads(buildah("inspect", "--type", "image", name))
    made = [step["created_by"] for step in found["Docker"]["history"] if not step.get("empty_layer")]
    sizes = [layer["size"] for layer in json.loads(found["Manifest"])["layers"]]
    layers = {f"{index} {text}": size for index, (text, size) in enumerate(zip(made, sizes, strict=True))}
    return found["Docker"]["config"], layers


def buildah(*arguments: str) -> str:
    """What ``buildah --storage-driver overlay`` printed. Raises CalledProcessError."""
    command = ["buildah", "--storage-driver", "overlay", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout.strip()
