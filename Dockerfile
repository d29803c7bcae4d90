# Two images: the coordinator (the default target) and, for compose.yaml, the example services.
# What is installed is pinned with hashes and goes into one virtual environment, built in a stage of its own;
# neither pip nor sources of the SDK reach the images that run.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv --without-pip /opt/holdfast
COPY requirements/run.txt requirements/
RUN python -m pip --python /opt/holdfast/bin/python install --require-hashes -r requirements/run.txt
COPY participants/pyproject.toml participants/README.md participants/LICENSE participants/
COPY participants/holdfast participants/holdfast
RUN python -m pip --python /opt/holdfast/bin/python install --no-deps --no-build-isolation ./participants

FROM python:3.13-slim AS base
ENV PATH=/opt/holdfast/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
RUN install -d -o 10001 -g 10001 /data
COPY --from=build /opt/holdfast /opt/holdfast
USER 10001:10001
VOLUME /data

FROM base AS examples
COPY participants/examples examples
CMD ["uvicorn", "examples.order:app", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS coordinator
COPY alembic alembic
COPY app app
ENV HOLDFAST_HOST=0.0.0.0 \
    HOLDFAST_PORT=8000 \
    HOLDFAST_DATABASE_URL=sqlite:////data/holdfast.db
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['HOLDFAST_PORT']), timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "app", "serve"]
