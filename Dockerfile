# The page and the command line in a container, for NVIDIA cards or for the processor alone.
#
#   docker build -t cogvideo .                                for NVIDIA cards
#   docker build -t cogvideo:cpu --build-arg DEVICE=cpu .     smaller, without anything of CUDA's
#   scripts/run_image.sh                                      the page; `scripts/run_image.sh doctor` and so on: commands
#
# Building needs no card: PyTorch's wheels bring CUDA's libraries, the base brings the CUDA runtime, and kernels are
# compiled when they are first used (hence gcc and Python's headers).
#
# Two volumes. /home/cogvideo: weights (.sat_models, .icetk_models) and compiled kernels. /data: films and the queue.
ARG DEVICE=gpu
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS gpu
FROM debian:bookworm-slim AS cpu

# hadolint ignore=DL3006
FROM ${DEVICE}
ARG DEVICE
ARG CPU_WHEELS=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The distribution's own versions are meant: its security updates should come in with every build.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What changes seldom comes first, so that a change of the code does not install everything again.
RUN python3 -m venv /opt/cogvideo
ENV PATH=/opt/cogvideo/bin:$PATH
WORKDIR /app
COPY requirements.txt .
RUN if [ "$DEVICE" = cpu ]; then \
        grep -E '^torch(vision)?==' requirements.txt >/tmp/torch.txt \
        && pip install --index-url "$CPU_WHEELS" -r /tmp/torch.txt \
        && rm /tmp/torch.txt; \
    fi \
    && pip install -r requirements.txt

# The code belongs to root: the process that serves strangers cannot change it. The group of the two volumes is 0, so
# that they can be written by any user id, as where a host's own folders are mounted.
COPY . .
RUN python -m compileall -q app.py cogvideo kernels \
    && useradd --uid 10001 --gid 0 --no-create-home --shell /usr/sbin/nologin cogvideo \
    && install -d -o cogvideo -g 0 -m 770 /data /home/cogvideo
USER 10001
ENV HOME=/home/cogvideo PYTHONPATH=/app COGVIDEO_DATA=/data GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
WORKDIR /data
VOLUME ["/home/cogvideo", "/data"]

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['GRADIO_SERVER_PORT']}/alive\", timeout=4)"]
ENTRYPOINT ["python", "-m", "cogvideo"]
CMD ["serve"]
