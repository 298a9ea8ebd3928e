# The image of calcium-denoiser: a folder of movies in /input, denoised movies in /output.
# Layers go from what changes least to what changes most: requirements, weights, code.

# CUDA 12.6 still has kernels for the T4 and runs on the driver of the platform's hosts. Any image with this torch will do.
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="calcium-denoiser" \
      org.opencontainers.image.description="Denoises calcium-imaging movies" \
      org.opencontainers.image.licenses="BSD-3-Clause"

WORKDIR /app

# The base's torch is a constraint: another pin in requirements.txt stops the build, where pip alone would replace a torch
# that fits the driver by 3 GB of one that may not. PIP_BREAK_SYSTEM_PACKAGES: the base's Python belongs to its
# distribution (PEP 668), and here is no other program that could break. Nothing is cached or left in /tmp.
COPY requirements.txt requirements-formats.txt ./
RUN python -c 'import torch; print("torch==" + torch.__version__)' > /tmp/base.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
       python -m pip install --no-cache-dir --constraint /tmp/base.txt \
         --requirement requirements.txt --requirement requirements-formats.txt \
    && rm /tmp/base.txt

# The weights change less often than the code.
COPY best_model_n2v.pth ./

# The movie of --demo, below 2 MB.
COPY example/ example/

COPY process.py model.py ./
COPY denoise/ denoise/

# Compiled now, since nothing can be written later. Everybody may read and only root may write, whatever the umask was
# where the files come from; only those that need it are touched, so that the weights are not stored twice.
RUN python -m compileall -q . \
    && find . \( ! -perm -004 -o -perm /022 \) -exec chmod a+rX,go-w {} +

# Output is told line by line as it happens, also when the run is stopped.
ENV PYTHONUNBUFFERED=1
# The root file system may be read-only, and the user need not be known to it: what libraries keep goes to /tmp, and no
# Python package is taken from there.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    HOME=/tmp
# Memory that is freed is used again (denoise/limits.py). Without this, splinters of it are kept for small things, and what
# lies between them is too small for the next block as large as the last: memory grew by a third.
ENV GLIBC_TUNABLES=glibc.malloc.tcache_count=0
# A thread that waits for the others gives its processor away soon, not after a millisecond: beside other programs on the same
# processors a run takes a tenth of the time (docs/benchmarks.md).
ENV GOMP_SPINCOUNT=10000

# Not root, which the platform refuses; a number, so that it can be seen not to be root. 1000 is the first user of most
# Linux machines, who then owns the output; any other works too (docker run --user).
USER 1000:1000

# Exec form: signals reach Python itself, and words after the image's name become options.
ENTRYPOINT ["python", "/app/process.py"]
