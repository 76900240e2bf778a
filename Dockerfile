# The page in a container, for NVIDIA cards or, without --gpus, for the CPU.
#
#   docker build -t cogvideo .
#   docker build -t cogvideo --build-arg BASE=ubuntu:24.04 .         a smaller image, without anything of CUDA's system
#   docker run --rm -p 7860:7860 --gpus all -v cogvideo:/home/cogvideo/app/data cogvideo
#
# Building needs no card: PyTorch's wheels bring CUDA's libraries, and kernels are compiled when they are first used
# (hence gcc and Python's headers). The volume keeps the films that were made.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --shell /usr/sbin/nologin cogvideo
USER cogvideo
WORKDIR /home/cogvideo/app

# What changes seldom comes first, so that a change of the code does not install everything again.
COPY --chown=cogvideo requirements.txt .
RUN python3 -m venv /home/cogvideo/venv && /home/cogvideo/venv/bin/pip install -r requirements.txt
ENV PATH=/home/cogvideo/venv/bin:$PATH

COPY --chown=cogvideo . .
RUN mkdir -p data
VOLUME /home/cogvideo/app/data

ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=4)"]
CMD ["python", "app.py"]
