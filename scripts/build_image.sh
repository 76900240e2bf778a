#!/usr/bin/env bash
# Builds the container's image: for NVIDIA cards, or with --cpu for the processor alone. No card is needed to build.
#   scripts/build_image.sh [--cpu] [options of docker build]
# ENGINE names the program: docker, podman, buildah.
set -euo pipefail
cd "$(dirname "$0")/.."

device=gpu tag=cogvideo
if [ "${1:-}" = --cpu ]; then
    device=cpu tag=cogvideo:cpu
    shift
fi
exec "${ENGINE:-docker}" build --tag "$tag" --build-arg "DEVICE=$device" "$@" .
