# shortviz for strangers: the limits of docs/hosting.md hold, the demo model is inside, no network is needed at run time.
#   docker build -t shortviz . && docker run --rm -p 8501:8501 shortviz
# Every command that sets something up is a target of the Makefile.
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app

ENV SHORTVIZ_HOSTED=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=2 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PIP_NO_CACHE_DIR=1

# Where pip finds torch without CUDA; empty takes PyPI's own, which is gigabytes larger and runs on a GPU.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

COPY --chown=user:user . .
RUN make setup setup-hosted
RUN make demo

EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD .venv/bin/python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"
CMD ["make", "run", "HOST=0.0.0.0", "PORT=8501"]
