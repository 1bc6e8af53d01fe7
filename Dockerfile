# Two images of one file, by target:
#
#   docker build --target cpu -t foray:cpu .
#   docker build --target cuda -t foray:cuda .
#
#   docker run --rm -it --shm-size=2g -v "$PWD/runs:/foray/runs" foray:cpu --actors 32
#   docker run --rm -it --shm-size=16g --gpus all -v "$PWD/runs:/foray/runs" foray:cuda --model DIR
#
# --shm-size: the learner hands new weights to the engines through memory, /dev/shm, and PyTorch's
# processes share tensors there. A container has 64 MB of it unless told otherwise. Have room for
# four copies of the weights in engine.dtype: 2g is plenty for the tiny policy, 16g fits two billion
# parameters in bfloat16. With less, a run takes another directory if one has room, which is slower,
# or says at its start what it needs; run.weights_dir names one.
#
# The dashboard listens inside the container: add -p 8080:8080, and the options
# --dashboard.host 0.0.0.0 --dashboard.port 8080 --dashboard.token A_SECRET.

# The CUDA of the image is to be that of torch, which comes with vLLM.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS cpu
# A C++ compiler, for functions that PyTorch compiles.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels /wheels
# torch comes from PyTorch's index of CPU builds; torchvision, torchaudio and torchcodec come built
# for CUDA, and would break `import transformers`.
RUN pip install --no-cache-dir torch==2.13.0+cpu \
        --extra-index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "$(echo /wheels/foray-*.whl)[cpu]" \
    && { pip uninstall -y torchvision torchaudio torchcodec || true; }
WORKDIR /foray
ENTRYPOINT ["foray"]

FROM ${CUDA_IMAGE} AS cuda
# The devel image has the compiler that vLLM's kernels are built with on first use.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-dev g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels /wheels
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir "$(echo /wheels/foray-*.whl)[cuda]"
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /foray
ENTRYPOINT ["foray"]
