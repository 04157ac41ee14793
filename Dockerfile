# One image for both hosts: Lambda's runtime client where AWS_LAMBDA_RUNTIME_API is set, else the worker.
# `make image` builds it; `--target gpu` is the same with torch for CUDA, `--target light` only what answers callers:
# submit, status, deadletter and doctor, which load no model.
ARG BASE=python:3.11-slim

# --- Whatever builds stays in these stages -------------------------------------------------------------------------
FROM ${BASE} AS tools
WORKDIR /src
# pip lives in an environment of its own, so that nothing has to be taken out of the one that is shipped.
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/venv
COPY pyproject.toml infra/constraints.txt infra/locked.txt infra/locked-light.txt infra/install.sh infra/slim.sh ./

# Two secrets that need not be there: a pip configuration (mirrors) and a bundle of certificate authorities.
FROM tools AS packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca sh install.sh cpu "${TORCH_INDEX}" && sh slim.sh

FROM tools AS packages-gpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca sh install.sh gpu "${TORCH_INDEX}" && sh slim.sh

FROM tools AS packages-light
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca sh install.sh light && sh slim.sh

FROM tools AS app
COPY README.md LICENSE ./
COPY handler handler
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca sh install.sh app /opt/darkroom

# Of the model the doors need the card alone.
FROM app AS app-light
RUN rm -r /opt/darkroom/handler/engine && find /opt/darkroom/handler/model -type f ! -name model_card.json -delete

# Always with torch for the CPU: the card is read off the pipeline's code, not off a device.
FROM packages AS model
ARG MODEL_ID=
ARG MODEL_REVISION=
COPY --from=app /opt/darkroom /opt/darkroom
COPY infra/bake.py ./
RUN --mount=type=bind,target=/context --mount=type=secret,id=ca --mount=type=secret,id=hf_token \
    --mount=type=secret,id=aws,target=/root/.aws/credentials --mount=type=cache,target=/var/cache/models \
    PYTHONPATH=/opt/darkroom /opt/venv/bin/python bake.py /context /opt/weights /var/cache/models

# With PROVE=1: what a worker proves, measures and compiles at its first start, for hosts like the one that builds. The
# result depends on the device, so this runs with the packages that are shipped.
FROM packages AS proofs
ARG PROVE=
ARG MODEL_ID=
ARG MODEL_REVISION=
WORKDIR /opt/weights
RUN --mount=type=bind,from=app,source=/opt/darkroom,target=/opt/darkroom \
    --mount=type=bind,from=model,source=/opt/weights,target=/opt/weights \
    mkdir /opt/baked && if [ -n "${PROVE}" ]; then \
    CACHE_DIR=/tmp/cache PYTHONPATH=/opt/darkroom /opt/venv/bin/python -m handler.cli.main prove --out /opt/baked; fi

FROM packages-gpu AS proofs-gpu
ARG PROVE=
ARG MODEL_ID=
ARG MODEL_REVISION=
WORKDIR /opt/weights
# hadolint ignore=DL3008
RUN [ -z "${PROVE}" ] || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
RUN --mount=type=bind,from=app,source=/opt/darkroom,target=/opt/darkroom \
    --mount=type=bind,from=model,source=/opt/weights,target=/opt/weights \
    mkdir /opt/baked && if [ -n "${PROVE}" ]; then \
    CACHE_DIR=/tmp/cache PYTHONPATH=/opt/darkroom /opt/venv/bin/python -m handler.cli.main prove --out /opt/baked; fi

# --- What is shipped -----------------------------------------------------------------------------------------------
FROM ${BASE} AS runtime
# Only /tmp can be written, under Lambda and on a read-only root alike. USER, because Lambda's own has no name and
# torch asks for one. Bytecode is there already and nobody could write it. The hub is never asked: the weights are baked.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=darkroom \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/huggingface \
    HF_HUB_OFFLINE=1 \
    ALIVE_FILE=/tmp/alive
# A baked model lies here under its own name: MODEL_ID is looked for as a folder first.
WORKDIR /opt/darkroom
# For the worker; Lambda, ECS and Kubernetes have checks of their own and may run the same command.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "handler.work.liveness"]
ENTRYPOINT ["python", "-m", "handler"]

FROM runtime AS light
COPY --from=packages-light /opt/venv /opt/venv
COPY --from=app-light /opt/darkroom /opt/darkroom
USER 10001:10001

# The model's name is set after its weights: not every builder looks at an argument's value when it takes an ENV from
# its cache, and the image would go by the name of the model before.
FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles C when it loads a kernel for the first time (pytorch/pytorch issue 116696): without a compiler nothing
# is ever compiled on a GPU. No version: it makes nothing that is shipped.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=packages-gpu /opt/venv /opt/venv
COPY --from=model /opt/weights /opt/darkroom
ARG MODEL_ID=
ARG MODEL_REVISION=
ENV MODEL_ID=${MODEL_ID} MODEL_REVISION=${MODEL_REVISION}
COPY --from=app /opt/darkroom /opt/darkroom
COPY --from=proofs-gpu /opt/baked /opt/darkroom/handler/baked
USER 10001:10001

FROM runtime AS cpu
COPY --from=packages /opt/venv /opt/venv
COPY --from=model /opt/weights /opt/darkroom
ARG MODEL_ID=
ARG MODEL_REVISION=
ENV MODEL_ID=${MODEL_ID} MODEL_REVISION=${MODEL_REVISION}
COPY --from=app /opt/darkroom /opt/darkroom
COPY --from=proofs /opt/baked /opt/darkroom/handler/baked
USER 10001:10001
