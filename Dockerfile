# The image for GKE, from the pinned requirements:
#   docker build --build-arg=JAX=tpu --tag=REGISTRY/effnet_jax:tpu .
#   docker build --build-arg=JAX=cuda13 --tag=REGISTRY/effnet_jax:gpu .
FROM python:3.12-slim
# The extra of jax for the accelerator: tpu, or cuda13 or cuda12, whose packages contain CUDA.
ARG JAX=tpu
# More packages, such as those of an extra in pyproject.toml, separated by spaces.
ARG PACKAGES=
# tini is process 1: as process 1, train.py would not get signals that it does not handle.
RUN apt-get update && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /effnet_jax
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt "jax[$JAX]" $PACKAGES
COPY . ./
ENTRYPOINT ["tini", "--", "python", "train.py"]
