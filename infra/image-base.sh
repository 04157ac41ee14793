#!/bin/sh
# A base image out of Debian packages alone, for machines that reach no container registry: localhost/base:bookworm.
# Needs root, buildah and debootstrap. Fetches about 60 MB of Debian packages: a minimal system and Python 3.11.
set -eu
NAME=${1:-localhost/base:bookworm}
export STORAGE_DRIVER="${STORAGE_DRIVER:-overlay}"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >"$root.log" 2>&1 || {
    tail -20 "$root.log" >&2
    exit 1
}
rm -f "$root.log"
# What an official slim image leaves out as well: package lists and archives, manuals, translations.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
# The host's name server is nobody else's: a container gets its own.
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"

container=$(buildah from scratch)
buildah add -q "$container" "$root" / >/dev/null
# As in python:3.11-slim, where "python" is Python 3.11 too.
buildah config --cmd python3 --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit -q --rm "$container" "$NAME"
