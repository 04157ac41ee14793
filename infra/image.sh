#!/bin/sh
# Builds the image with docker, podman or buildah, whichever works here. From the environment, all optional:
#   ENGINE     docker, podman or buildah                 NAME     the image's name, darkroom:latest
#   TARGET     cpu, gpu or light                         BASE     the base image
#   MODEL_ID, MODEL_REVISION   a hub id, a folder of this checkout, s3://bucket/prefix; unset: the built-in model
#   PROVE       1: what a worker's first start finds out is found out now, for hosts like this one
#   TORCH_INDEX     where torch comes from; empty: from where everything else does
#   HF_TOKEN_FILE, AWS_CREDENTIALS_FILE   for models that need them; secrets of the build, not in the image
#   IMAGE_OPTIONS   more words for the engine, such as --platform linux/arm64
set -eu
cd "$(dirname "$0")/.."
NAME=${NAME:-darkroom:latest} TARGET=${TARGET:-cpu}

works() {
    case $1 in
    docker) docker info >/dev/null 2>&1 ;; # the client alone builds nothing
    *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

for candidate in ${ENGINE:-docker podman buildah}; do
    if works "$candidate"; then engine=$candidate && break; fi
done
[ -n "${engine-}" ] || { echo "no docker, podman or buildah that works here" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

set -- --file Dockerfile --target "$TARGET" --tag "$NAME"
for name in BASE MODEL_ID MODEL_REVISION PROVE; do
    eval "value=\${$name-}"
    [ -z "$value" ] || set -- "$@" --build-arg "$name=$value"
done

secret() { # ID FILE
    if [ -n "$2" ] && [ -f "$2" ]; then extra="--secret id=$1,src=$2"; else extra=; fi
}

# This machine's certificate authorities and pip configuration hold inside the build as well: a proxy, a mirror.
secret ca "${SSL_CERT_FILE:-${PIP_CERT-}}" && set -- "$@" $extra
secret hf_token "${HF_TOKEN_FILE-}" && set -- "$@" $extra
secret aws "${AWS_CREDENTIALS_FILE-}" && set -- "$@" $extra
{
    echo "[global]"
    python3 -m pip config list 2>/dev/null |
        sed -n "s/^\(global\|:env:\)\.\(index-url\|extra-index-url\|find-links\|trusted-host\|timeout\)='\(.*\)'$/\2 = \3/p" |
        sed 's/\\n/ /g' | sort -u -t ' ' -k 1,1
} >"$scratch/pip.conf"
secret pip "$scratch/pip.conf" && set -- "$@" $extra

# Packages that lie in folders of this machine, and torch among them.
folders=$(tr ' ' '\n' <"$scratch/pip.conf" | sed -n 's#^\(file://\)\{0,1\}\(/.*\)$#\2#p' | sed 's#/simple/*$##' | sort -u)
version=$(sed -n 's/^torch==//p' infra/constraints.txt)
for folder in $folders; do
    [ -d "$folder" ] || continue
    if [ "$engine" = docker ]; then
        echo "docker cannot see $folder, which this machine's pip looks into" >&2
        continue
    fi
    set -- "$@" --volume "$folder:$folder:ro"
    for wheel in "$folder/torch-$version+cpu"*.whl; do
        if [ -f "$wheel" ] && [ "$TARGET" = cpu ]; then TORCH_INDEX=${TORCH_INDEX-}; fi
    done
done
[ -z "${TORCH_INDEX+set}" ] || set -- "$@" --build-arg "TORCH_INDEX=$TORCH_INDEX"

case $engine in
docker)
    # Lambda takes no image index, which attestations would make of the image.
    export BUILDX_NO_DEFAULT_ATTESTATIONS=1 DOCKER_BUILDKIT=1
    ;;
*)
    # Docker's format: the other one has no HEALTHCHECK.
    set -- --format docker --layers "$@"
    ;;
esac
if [ "$engine" = buildah ]; then
    # Without namespaces of its own it builds in CI's containers, too.
    export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}" STORAGE_DRIVER="${STORAGE_DRIVER:-overlay}"
    set -- --network host "$@"
fi
# shellcheck disable=SC2086 # several words
"$engine" build "$@" ${IMAGE_OPTIONS-} .
