#!/bin/sh
# Inside the image's build: packages into /opt/venv, or the application into a folder.
#   install.sh cpu|gpu [INDEX]   torch from the package index INDEX, where one is named, then everything else
#   install.sh app FOLDER
set -eu
secrets=/run/secrets
[ ! -f "$secrets/pip" ] || export PIP_CONFIG_FILE="$secrets/pip"
[ ! -f "$secrets/ca" ] || export PIP_CERT="$secrets/ca"

# Bytecode is compiled below: pip's own trusts the files' times, which builders and registries may rewrite, and on a
# read-only file system every start would then compile all of it anew, three times as slow.
pip() { /opt/tools/bin/pip --quiet --disable-pip-version-check --no-cache-dir --python /opt/venv/bin/python "$@"; }
compiled() { /opt/venv/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$1"; }

case $1 in
app)
    pip install --no-compile --no-deps --target "$2" .
    rm -rf "$2/bin" # its console script names this stage's interpreter
    compiled "$2"
    exit
    ;;
esac

# Only torch itself, and only from there: what it depends on comes from where everything else does.
[ -z "${2-}" ] || pip install --no-compile --no-deps -c constraints.txt --index-url "$2" torch
/opt/venv/bin/python - >requirements.txt <<'PYTHON'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in ("engine", "lambda", "cli"))]
print("\n".join(line for group in groups for line in group))
PYTHON
pip install --no-compile -c constraints.txt -r requirements.txt
# An index that does not have what it should is an image with gigabytes too much, or a GPU that stands idle.
found=$(/opt/venv/bin/python -c 'import torch; print("gpu" if torch.version.cuda else "cpu")')
[ "$found" = "$1" ] || { echo "this torch is for $found, not for $1: look at TORCH_INDEX" >&2; exit 1; }
