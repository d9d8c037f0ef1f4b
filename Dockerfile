# capfilt with PyTorch for CPUs: docker build -t capfilt . && docker run --rm -v "$PWD:/data" capfilt run manifest.yaml
# On a cluster, with Ray and CUDA: deploy/Dockerfile.
FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 1000 capfilt && mkdir /data && chown capfilt /data
WORKDIR /src
COPY pyproject.toml README.md LICENSE capfilt.py ./
COPY pipeline pipeline
COPY stages stages
COPY models models
COPY manifests manifests
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu .
USER 1000
WORKDIR /data
ENV NO_ALBUMENTATIONS_UPDATE=1 RAY_USAGE_STATS_ENABLED=0
ENTRYPOINT ["capfilt"]
CMD ["--help"]
