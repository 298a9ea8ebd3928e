#!/usr/bin/env bash
# Build the image and run it once, as Grand Challenge would: input from test/input (made where it is missing), result in
# test/output, which has to hold one image as the platform takes one. Words after the name go to docker build.
set -euo pipefail

export IMAGE=${IMAGE:-calcium-denoiser:latest}
MEMORY=16g          # RAM of the smallest machine that the challenge runs on
PROCESSES=256       # processes and threads in the container, the limit in Grand Challenge's own test script
FRAMES=500 SIDE=128 # of the stack that is made: the size of the challenge's hidden ones
FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
INPUT=$FOLDER/test/input
RESULT=$FOLDER/test/output
SOCKET=images/stacked-neuron-images-with-reduced-noise # where the platform looks for the one image

main() {
    echo "=+= Building the image"
    "$FOLDER/do_build.sh" "$@"
    work=$(mktemp -d)
    output=$work/output
    model=$work/model # empty: the platform makes the folder whether or not a model was uploaded
    trap clean_up EXIT
    mkdir "$output" "$model"
    chmod 777 "$output" # the image's user is not the one who runs this script
    chmod 755 "$model"
    [ -e "$INPUT" ] || make_input
    chmod -R a+rX "$INPUT"
    echo "=+= Denoising $INPUT"
    denoise
    keep_result
    check
    echo "=+= Wrote $RESULT; save the image for uploading by ./do_save.sh"
}

make_input() {
    echo "=+= Making a stack of $FRAMES x $SIDE x $SIDE in $INPUT"
    local made=$INPUT.part # gets its name when it is complete: half of it would be taken for the input ever after
    local images=$made/images/stacked-neuron-images-with-noise
    rm -rf "$made"
    mkdir -p "$images"
    cat >"$made/inputs.json" <<'JSON'
[
  {
    "file": null,
    "image": {"name": "example.tif"},
    "value": null,
    "interface": {
      "slug": "stacked-neuron-images-with-noise",
      "kind": "Image",
      "super_kind": "Image",
      "relative_path": "images/stacked-neuron-images-with-noise",
      "example_value": null
    }
  }
]
JSON
    # blinking blobs under noise of the challenge's level 2: variance = 249 * signal + 2700
    docker run --rm --network none -i --entrypoint python "$IMAGE" - "$FRAMES" "$SIDE" >"$images/example.tif" <<'PYTHON'
import io, sys

import numpy as np
import tifffile

frames, side = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
t, (y, x) = np.arange(frames), np.mgrid[:side, :side]
clean = np.full((frames, side, side), 100.0)  # (T, Y, X)
for cy, cx, start in zip(*rng.uniform(0, side, (2, 40)), rng.uniform(0, frames, 40)):
    trace = 200 + 800 * np.where(t < start, 0, np.exp(-(t - start) / 40))
    clean += trace[:, None, None] * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 18)
noisy = 249 * rng.poisson(clean / 249) + rng.normal(0, 2700**0.5, clean.shape)
file = io.BytesIO()
tifffile.imwrite(file, noisy.clip(-32768, 32767).astype(np.int16), resolution=(300, 300), resolutionunit="INCH")
sys.stdout.buffer.write(file.getvalue())
PYTHON
    mv "$made" "$INPUT"
}

denoise() {
    local gpu=()
    if docker info --format '{{json .Runtimes}}' | grep -q nvidia; then
        gpu=(--gpus all)
    else
        echo "=+= Docker has no NVIDIA runtime here: this runs on the CPU"
    fi
    docker run --rm ${gpu[@]+"${gpu[@]}"} \
        --network none \
        --read-only --tmpfs /tmp \
        --cap-drop=ALL --security-opt=no-new-privileges \
        --memory="$MEMORY" --pids-limit="$PROCESSES" \
        --volume "$INPUT:/input:ro" \
        --volume "$model:/opt/ml/model:ro" \
        --volume "$output:/output" \
        "$IMAGE"
}

keep_result() {
    rm -rf "$RESULT"
    mkdir -p "$RESULT"
    cp -R "$output/." "$RESULT"
}

check() {
    local found
    found=$(find "$RESULT" -type f -path "*/$SOCKET/*" | wc -l)
    [ "$found" -eq 1 ] || fail "$RESULT/$SOCKET: expected one image, as the platform takes one, found $((found)) files"
}

fail() {
    echo "do_test_run.sh: $*" >&2
    exit 1
}

clean_up() {
    # the files belong to the image's user, who gives them away
    docker run --rm --network none --volume "$output:/output" --entrypoint find "$IMAGE" /output -mindepth 1 -delete || true
    rm -rf "$work"
}

main "$@"
