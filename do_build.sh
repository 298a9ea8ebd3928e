#!/usr/bin/env bash
# Build the image. Words after the name go to docker build: ./do_build.sh --build-arg BASE_IMAGE=other/pytorch:tag
set -euo pipefail

IMAGE=${IMAGE:-calcium-denoiser:latest}
PLATFORM=linux/amd64 # the only one that Grand Challenge runs
FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

main() {
    docker build --platform "$PLATFORM" --tag "$IMAGE" "$@" "$FOLDER"
}

main "$@"
