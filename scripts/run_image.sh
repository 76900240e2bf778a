#!/usr/bin/env bash
# Runs the image that scripts/build_image.sh made: the page at http://127.0.0.1:7860, or any command.
#   scripts/run_image.sh [--cpu] [COMMAND ...]      such as: doctor, download cogvideo, generate "一只熊猫在草地上向右跑"
#
# ADDRESS, PORT  where the page is served (127.0.0.1, 7860)
# WEIGHTS, DATA  volumes, or folders of the host: weights and compiled kernels; films and the queue
# ENGINE         docker, podman
set -euo pipefail

tag=cogvideo
options=(--gpus all)
if [ "${1:-}" = --cpu ]; then
    tag=cogvideo:cpu
    options=()
    shift
fi

weights=${WEIGHTS:-cogvideo-weights} data=${DATA:-cogvideo-data}
case "$weights$data" in
*/*) options+=(--user "$(id -u):0") ;; # a host's folder belongs to whoever calls this
esac
if [ -t 0 ] && [ -t 1 ]; then
    options+=(--interactive --tty)
fi
for name in COGVIDEO_MODEL COGVIDEO_MEMORY GRADIO_ROOT_PATH HF_ENDPOINT HF_TOKEN OMP_NUM_THREADS; do
    if [ -n "${!name:-}" ]; then
        options+=(--env "$name") # the value stays out of the list of processes
    fi
done
if [ $# -eq 0 ] || [ "$1" = serve ]; then
    options+=(--publish "${ADDRESS:-127.0.0.1}:${PORT:-7860}:7860")
fi

exec "${ENGINE:-docker}" run --rm --init "${options[@]}" \
    --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --volume "$weights:/home/cogvideo" --volume "$data:/data" \
    "$tag" "$@"
