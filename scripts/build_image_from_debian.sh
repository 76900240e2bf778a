#!/usr/bin/env bash
# Builds the image for the processor where no registry of images can be reached: Debian's packages make the base, buildah
# the image. Takes root, debootstrap and buildah. Further words go to `buildah build`.
#   scripts/build_image_from_debian.sh FOLDER [options]        FOLDER keeps base and layers for the next time
set -euo pipefail
mkdir -p "$1"
folder=$(realpath "$1")
shift
cd "$(dirname "$0")/.."

buildah=(buildah --storage-driver vfs --root "$folder/store" --runroot "$folder/run")
base_of() { sed -n "s/^FROM \(.*\) AS $1\$/\1/p" Dockerfile; }

if [ ! -e "$folder/base" ]; then
    debootstrap --variant=minbase bookworm "$folder/root"
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add "$container" "$folder/root" /
    "${buildah[@]}" commit "$container" "$(base_of cpu)"
    "${buildah[@]}" tag "$(base_of cpu)" "$(base_of gpu)" # older versions want to see stages that they pass by
    touch "$folder/base"
fi
exec "${buildah[@]}" build --isolation chroot --pull-never --layers --format docker \
    --build-arg DEVICE=cpu --tag cogvideo:cpu "$@" .
