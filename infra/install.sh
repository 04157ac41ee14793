#!/bin/sh
# Inside the image's build: packages into /opt/venv, or the application into a folder.
#   install.sh cpu|gpu [INDEX]   torch, from the package index INDEX where one is named, then everything else
#   install.sh light             what the doors need, which load no model
#   install.sh app FOLDER
# Everything but torch is one of the files that locked.txt (locked-light.txt) has the hash of. torch is of one exact version: PyTorch's own
# index, which has a build for each kind of device, has other files under that name than PyPI has.
set -eu
secrets=/run/secrets
[ ! -f "$secrets/pip" ] || export PIP_CONFIG_FILE="$secrets/pip"
[ ! -f "$secrets/ca" ] || export PIP_CERT="$secrets/ca"

# Bytecode is compiled below: pip's own trusts the files' times, which builders and registries may rewrite, and on a
# read-only file system every start would then compile all of it anew, three times as slow.
pip() { /opt/tools/bin/pip --quiet --disable-pip-version-check --no-cache-dir --python /opt/venv/bin/python "$@"; }
locked() { # an awk condition that is true for the packages wanted
    awk '/^[a-z]/ { wanted = ('"$1"') } wanted' locked.txt >wanted.txt
    pip install --no-compile --no-deps --only-binary :all: --require-hashes -r wanted.txt
}
compiled() { /opt/venv/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$1"; }

case $1 in
app)
    locked '/^setuptools==/' # which builds it
    pip install --no-compile --no-deps --no-build-isolation --target "$2" .
    rm -rf "$2/bin" # its console script names this stage's interpreter
    compiled "$2"
    exit
    ;;
light)
    pip install --no-compile --no-deps --only-binary :all: --require-hashes -r locked-light.txt
    /opt/tools/bin/pip --python /opt/venv/bin/python check
    exit
    ;;
esac

pip install --no-compile --no-deps -c constraints.txt ${2:+--index-url "$2"} torch
case $1 in
cpu) locked '!/^(cuda|nvidia|triton)[-=]/' ;;
*) locked 1 ;;
esac
/opt/tools/bin/pip --python /opt/venv/bin/python check
# An index that does not have what it should is an image with gigabytes too much, or a GPU that stands idle.
found=$(/opt/venv/bin/python -c 'import torch; print("gpu" if torch.version.cuda else "cpu")')
[ "$found" = "$1" ] || { echo "this torch is for $found, not for $1: look at TORCH_INDEX" >&2; exit 1; }
