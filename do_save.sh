#!/usr/bin/env bash
# Build the image and save it as calcium-denoiser_<when>.tar.gz, ready to upload to Grand Challenge. Words after the name
# go to docker build.
set -euo pipefail

export IMAGE=${IMAGE:-calcium-denoiser:latest} # with its tag: a name alone would save every tag, and one image is allowed
LARGEST=10000000000 # bytes; larger archives are refused (Grand Challenge)
FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

main() {
    echo "= STEP 1 = Building the image"
    "$FOLDER/do_build.sh" "$@"
    archive=$FOLDER/calcium-denoiser_$(date -u +%Y-%m-%d_%H-%M-%S).tar.gz
    trap 'rm -f "$archive.part"' EXIT
    echo "= STEP 2 = Saving it, which takes minutes"
    docker save "$IMAGE" | gzip -c >"$archive.part"
    echo "= STEP 3 = Checking the archive"
    check "$archive.part"
    mv "$archive.part" "$archive"
    echo "Saved as $archive"
}

check() {
    local size images
    size=$(wc -c <"$1")
    [ "$size" -le "$LARGEST" ] || fail "$size bytes are more than the $LARGEST that Grand Challenge takes"
    images=$(tar -xzOf "$1" manifest.json | grep -o '"Config"' | wc -l)
    [ "$images" -eq 1 ] || fail "expected one image in the archive, found $images"
}

fail() {
    echo "do_save.sh: $*" >&2
    exit 1
}

main "$@"
