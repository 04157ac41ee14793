#!/bin/sh
# Inside the image's build: takes out of /opt/venv what no run needs, then compiles the rest.
set -eu
site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

if [ -d "$site/torch" ]; then
    # torch: its own test programs and protoc (bin keeps the helper for shared memory), C++ headers and CMake files for
    # extensions, libraries that only its tests load. Syntax of a newer Python, which this one cannot compile.
    find "$site/torch/bin" -mindepth 1 ! -name torch_shm_manager -delete
    rm -rf "$site/torch/test" "$site/torch/include" "$site/torch/share"
    rm -f "$site"/torch/lib/libtorchbind_test.so "$site"/torch/lib/libjitbackend_test.so \
        "$site"/torch/lib/libbackend_with_compiler.so "$site"/torch/testing/_internal/py312_intrinsics.py
fi

# Everywhere: static libraries, type stubs' C headers, and the tests that packages ship of themselves. Not torch's and
# numpy's "testing" packages: they are imported at run time.
find "$site" -name '*.a' -delete
find "$site" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
# botocore describes every service of AWS. These are the handlers' clients and what credentials are fetched with.
find "$site/botocore/data" -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sqs ! -name sts ! -name events \
    ! -name sso ! -name sso-oidc ! -name signin -exec rm -rf {} +

# -f: some of it was imported on the way here, and its bytecode trusts the files' times.
/opt/venv/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$site"
