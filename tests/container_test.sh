#!/usr/bin/env bash
# Build the Docker image and run it as strictly as the platform could: on a challenge input, on a plain folder as another
# user, stopped and resumed, and on an empty folder. Needs Docker, and a Python with numpy, tifffile and SimpleITK (PYTHON,
# default .venv's).
#
# Base: BASE_IMAGE if set, else the stand-in where it was made, else the Dockerfile's own. The stand-in's engine has no
# bridge network, so that its builds use the host's.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-$REPOSITORY/.venv/bin/python}
STANDIN=pytorch-standin:cpu
export IMAGE=calcium-denoiser:test
LARGEST=10000000000 # bytes; images above 10 GB are refused by the platform
MEMORY=16g          # RAM of the smallest machine that the challenge runs on
PROCESSES=256       # processes and threads in a container
OTHER_USER=4321:4321 # a user and group that the image has never heard of
STRICT=(--rm --network none --read-only --tmpfs /tmp --cap-drop=ALL --security-opt=no-new-privileges)

passed=0

main() {
    work=$(mktemp -d)
    trap clean_up EXIT
    choose_limits
    build
    check_image
    make_inputs
    challenge_input
    plain_folder_as_another_user
    every_format
    stopped_and_resumed
    empty_folder
    demo
    printf 'container test: %d passed, 0 failed\n' "$passed"
}

ok() {
    passed=$((passed + 1))
    echo "ok    $*"
}

fail() {
    echo "FAIL  $*" >&2
    exit 1
}

choose_limits() {
    if [ "$(docker info --format '{{.MemoryLimit}}')" = true ]; then
        STRICT+=(--memory="$MEMORY")
    else
        echo "NOT TESTED: this Docker engine cannot limit memory, --memory=$MEMORY is left out"
    fi
    if [ "$(docker info --format '{{.PidsLimit}}')" = true ]; then
        STRICT+=(--pids-limit="$PROCESSES")
    else
        echo "NOT TESTED: this Docker engine cannot limit processes, --pids-limit=$PROCESSES is left out"
    fi
}

build() {
    local options=()
    if [ -z "${BASE_IMAGE:-}" ] && docker image inspect "$STANDIN" >/dev/null 2>&1; then
        BASE_IMAGE=$STANDIN
        options+=(--network host)
    fi
    [ -z "${BASE_IMAGE:-}" ] || options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
    echo "building on ${BASE_IMAGE:-the base image of the Dockerfile}"
    "$REPOSITORY/do_build.sh" ${options[@]+"${options[@]}"} >"$work/build.log" 2>&1 || {
        tail -n 30 "$work/build.log" >&2
        fail "the image was not built"
    }
    ok "the image is built"
}

inspect() { docker image inspect --format "$1" "$IMAGE"; }

inside() { docker run "${STRICT[@]}" --entrypoint "$1" "$IMAGE" "${@:2}"; }

check_image() {
    local user files allowed
    user=$(inspect '{{.Config.User}}')
    [[ $user =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] || fail "expected a user given as a number and not root, found '$user'"
    ok "it runs as $user"
    [ "$(inspect '{{.Os}}/{{.Architecture}}')" = linux/amd64 ] || fail "expected an image for linux/amd64"
    [ "$(inspect '{{.Size}}')" -lt "$LARGEST" ] || fail "$(inspect '{{.Size}}') bytes are more than the platform takes"
    ok "it is for linux/amd64 and small enough"
    files=$(inside find /app -not -path '*/__pycache__*' -type f -printf '%P\n' | sort)
    allowed=$(cd "$REPOSITORY" && find process.py model.py best_model_n2v.pth requirements.txt requirements-formats.txt denoise example -type f -name '[!.]*' \
        -not -name '*.pyc' | sort)
    [ "$files" = "$allowed" ] || fail "/app differs from what belongs there: $(diff <(echo "$files") <(echo "$allowed") || true)"
    ok "it holds the program and its weights: no tests, training, simulation or evaluation"
    [ -z "$(inside find /app -perm /022)" ] || fail "files of the program can be written by anybody"
    [ -z "$(docker run --rm --network none --user 0:0 --entrypoint find "$IMAGE" /tmp /root/.cache -type f 2>/dev/null)" ] ||
        fail "the build left temporary files or a cache"
    ok "no file can be changed by its user, and no cache is left"
}

make_inputs() {
    mkdir -p "$work/empty" "$work/challenge" "$work/folder/day 2"
    "$PYTHON" - "$work" <<'PYTHON'
import json, sys
from pathlib import Path

import numpy as np
import tifffile

work = Path(sys.argv[1])
rng = np.random.default_rng(0)


def movie(shape, dtype):
    """A flickering blob under Poisson noise, (T, Y, X)."""
    t, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    blob = np.exp(-((y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2) / 50)
    return rng.poisson(20 + 30 * blob * (1 + np.sin(t / 5))).astype(dtype)


slug = "stacked-neuron-images-with-noise"
images = work / "challenge" / "images" / slug
images.mkdir(parents=True)
name = "5b1f3c1e-0d2a-4f0e-9a53-6f3f6f0f7a11.tif"
tifffile.imwrite(images / name, movie((40, 64, 72), np.int16), resolution=(1, 1), resolutionunit="CENTIMETER")
value = {
    "file": None,
    "image": {"name": "F1.tif"},
    "value": None,
    "interface": {
        "slug": slug,
        "kind": "Image",
        "super_kind": "Image",
        "relative_path": f"images/{slug}",
        "example_value": None,
    },
}
(work / "challenge" / "inputs.json").write_text(json.dumps([value]))
first = movie((21, 33, 47), np.uint16)
tifffile.imwrite(work / "folder" / "first.tif", first, imagej=True, metadata={"axes": "TYX"})
tifffile.imwrite(work / "folder" / "day 2" / "second.tiff", movie((5, 70, 20), np.float32), compression="zlib")
PYTHON
    chmod -R a+rX "$work"
}

# room NAME: makes $work/NAME/out, where any user may write
room() {
    mkdir -p "$work/$1/out"
    chmod 755 "$work/$1"
    chmod 777 "$work/$1/out"
}

# run NAME INPUT [OPTION OF docker run...] [-- OPTION OF THE PROGRAM...]: leaves the exit status in $status, output in
# $work/NAME/out
run() {
    local name=$1 input=$2 options=()
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    room "$name"
    status=0
    docker run "${STRICT[@]}" ${options[@]+"${options[@]}"} -v "$work/$input:/input:ro" -v "$work/$name/out:/output" "$IMAGE" "${@:2}" \
        >"$work/$name/stdout" 2>"$work/$name/stderr" || status=$?
}

# holds NAME: the files of $work/NAME/out, in one line
holds() { (cd "$work/$1/out" && find . -type f | sort | xargs); }

# succeeded NAME INPUT OUTPUT=INPUT...: the run ended well and left these movies and metadata.json, nothing else
succeeded() {
    [ "$status" = 0 ] || {
        cat "$work/$1/stdout" "$work/$1/stderr" >&2
        fail "$1: expected exit status 0, found $status"
    }
    "$PYTHON" - "$work/$1/out" "$work/$2" "${@:3}" <<'PYTHON' || fail "$1: the output is wrong"
import json, sys
from pathlib import Path

import numpy as np
import SimpleITK
import tifffile

output, source = Path(sys.argv[1]), Path(sys.argv[2])
pairs = dict(argument.split("=") for argument in sys.argv[3:])
found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
assert found == {*pairs, "metadata.json"}, f"found {sorted(found)}"
for name, origin in pairs.items():
    noisy = tifffile.imread(source / origin)
    with tifffile.TiffFile(output / name) as file:
        axes, denoised = file.series[0].axes, file.asarray()
        unit = file.pages[0].tags["ResolutionUnit"].value
    assert denoised.shape == noisy.shape, f"{name}: {denoised.shape} is not {noisy.shape}"
    assert denoised.dtype == np.float32 and len(axes) == 3, f"{name}: {denoised.dtype} {axes}"
    assert unit == 3, f"{name}: expected a resolution in centimetres, found unit {unit}"
    assert np.isfinite(denoised).all(), f"{name}: not finite"
    assert not np.array_equal(denoised, noisy), f"{name}: nothing was denoised"
    assert denoised.var() < noisy.var(), f"{name}: more variance than in the noisy movie"
    assert abs(denoised.mean() / noisy.mean() - 1) < 0.05, f"{name}: the mean was lost"
    again = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(output / name)))
    assert np.array_equal(again, denoised), f"{name}: SimpleITK reads another movie"
metadata = json.loads((output / "metadata.json").read_text())
assert metadata["status"] == "ok" and len(metadata["movies"]) == len(pairs), metadata
assert all(movie["status"] == "ok" for movie in metadata["movies"]), metadata
PYTHON
}

challenge_input() {
    run challenge-run challenge
    local image=images/stacked-neuron-images-with-reduced-noise
    image+=/$(cd "$work/challenge-run/out/$image" 2>/dev/null && ls)
    succeeded challenge-run challenge "$image=images/stacked-neuron-images-with-noise/5b1f3c1e-0d2a-4f0e-9a53-6f3f6f0f7a11.tif"
    [ ! -s "$work/challenge-run/stderr" ] || fail "stderr of a good run is shown as a warning: $(cat "$work/challenge-run/stderr")"
    ok "a challenge input gives one image that SimpleITK reads, metadata, and a silent stderr"
}

plain_folder_as_another_user() {
    run folder-run folder --user "$OTHER_USER"
    succeeded folder-run folder "first.tif=first.tif" "day 2/second.tif=day 2/second.tiff"
    ok "a folder of two movies gives two, as user $OTHER_USER"
}

# the image's own Python writes the files: its h5py and zarr are there to read them
every_format() {
    mkdir -p "$work/formats"
    chmod 777 "$work/formats"
    docker run "${STRICT[@]}" -i -v "$work/formats:/formats" --entrypoint python "$IMAGE" - <<'PYTHON'
import h5py, numpy, zarr

movie = numpy.random.default_rng(0).poisson(50, (12, 16, 18)).astype("uint16")
with h5py.File("/formats/a.h5", "w") as file:
    file["movie"] = movie
with h5py.File("/formats/b.nwb", "w") as file:
    series = file.create_group("acquisition/green")
    series.attrs["neurodata_type"] = "TwoPhotonSeries"
    series["data"] = movie
    series["starting_time"] = 0.0
    series["starting_time"].attrs["rate"] = 30.0
zarr.save("/formats/c.zarr", movie)
PYTHON
    run formats-run formats -- --format same
    [ "$status" = 0 ] || fail "formats: $(tail -n 3 "$work/formats-run/stderr")"
    local name
    for name in a.h5 b.nwb c.zarr; do
        [ -e "$work/formats-run/out/$name" ] || fail "formats: expected $name, found $(ls "$work/formats-run/out")"
    done
    ok "HDF5, NWB and Zarr are read, and written by --format same"
}

# Runs on /input of two movies, the second of which takes minutes, until docker stop; then on a shorter one in its place.
stopped_and_resumed() {
    local name="calcium-denoiser-test-$$" out="$work/stop-run/out" code before
    mkdir -p "$work/stop"
    room stop-run
    cp "$work/folder/first.tif" "$work/stop/a.tif"
    "$PYTHON" -c 'import sys, numpy, tifffile
tifffile.imwrite(sys.argv[1], numpy.random.default_rng(0).poisson(50, (4000, 256, 256)).astype("uint16"))' "$work/stop/b.tif"
    chmod -R a+rX "$work/stop"
    docker run "${STRICT[@]:1}" --detach --name "$name" -v "$work/stop:/input:ro" -v "$out:/output" "$IMAGE" --adapt off >/dev/null
    for _ in {1..600}; do
        ! docker logs "$name" 2>/dev/null | grep -q 'b.tif: denoising' || break
        sleep 0.1
    done
    docker stop --time 10 "$name" >/dev/null
    code=$(docker inspect --format '{{.State.ExitCode}}' "$name")
    docker rm "$name" >/dev/null
    [ "$code" = 143 ] || fail "docker stop: expected status 143, found $code (137: it had to be killed)"
    [ "$(holds stop-run)" = "./a.tif ./metadata.json" ] ||
        fail "docker stop: expected a.tif and metadata.json alone, found $(holds stop-run)"
    before=$(sha256sum <"$out/a.tif")
    cp "$work/folder/day 2/second.tiff" "$work/stop/b.tif"
    run stop-run stop -- --adapt off --resume
    [ "$status" = 0 ] || fail "--resume: $(tail -n 3 "$work/stop-run/stderr")"
    [ "$(holds stop-run)" = "./a.tif ./b.tif ./metadata.json" ] ||
        fail "--resume: expected a.tif, b.tif and metadata.json, found $(holds stop-run)"
    [ "$before" = "$(sha256sum <"$out/a.tif")" ] || fail "--resume: a.tif is another"
    grep -q 'a.tif: complete since an earlier run' "$work/stop-run/stdout" || fail "--resume: it does not tell that a.tif is complete"
    ok "docker stop leaves the finished movie and no part of the other; --resume does the rest"
}

empty_folder() {
    run empty-run empty
    local last
    last=$(grep -v '^[[:space:]]*$' "$work/empty-run/stderr" | tail -n 1)
    [ "$status" != 0 ] || fail "an empty folder: expected a failure, found exit status 0"
    [[ $last == *"/input"* && $last == *movie* && $last != *Traceback* && ${#last} -lt 500 ]] ||
        fail "an empty folder: expected a last line that says what is missing in /input, found '$last'"
    ok "an empty folder is refused: $last"
}

demo() {
    room demo-run
    docker run "${STRICT[@]}" -v "$work/demo-run/out:/output" "$IMAGE" --demo >"$work/demo-run/stdout" 2>"$work/demo-run/stderr" || {
        cat "$work/demo-run/stdout" "$work/demo-run/stderr" >&2
        fail "--demo: expected exit status 0"
    }
    local name
    for name in example.tif metadata.json report/example.html report/example.png; do
        [ -s "$work/demo-run/out/$name" ] || fail "--demo: expected $name"
    done
    [ ! -s "$work/demo-run/stderr" ] || fail "--demo: expected a silent stderr, found $(cat "$work/demo-run/stderr")"
    ok "--demo gives the example movie and its report: $(tail -n 1 "$work/demo-run/stdout")"
}

clean_up() {
    # what other users wrote can only be removed by root, which the container is
    docker run --rm --network none --user 0:0 -v "$work:/work" --entrypoint find "$IMAGE" /work -mindepth 1 -delete 2>/dev/null || true
    rm -rf "$work"
}

main "$@"
