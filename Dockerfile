# The canaryd daemon, in a cluster and without one. Runs as a number without a name, on a read-only root file system:
#   docker run --read-only --cap-drop ALL -v state:/var/lib/canaryd -v ./config:/etc/canaryd:ro IMAGE
# tests/packaging/test_image_steps.py runs these very instructions without a container engine.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src

# the lock first: this layer changes only when a dependency does
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes --requirement requirements/build.txt \
 && python3 -m venv --without-pip /opt/canaryd \
 && /opt/build/bin/pip --python /opt/canaryd/bin/python3 install --require-hashes --only-binary :all: \
      --requirement requirements/runtime.txt

COPY LICENSE README.md pyproject.toml ./
COPY canaryd canaryd
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheel . \
 && /opt/build/bin/pip --python /opt/canaryd/bin/python3 install --no-deps --no-index /opt/wheel/canaryd-*.whl


FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="canaryd" \
      org.opencontainers.image.description="Canary analysis and progressive delivery that says how sure it is" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

# the base brings an installer; the daemon needs none, and what is not there cannot be misused
RUN python3 -m pip uninstall --yes --quiet --root-user-action=ignore setuptools wheel pip \
 && rm -rf /usr/local/lib/python3.11/ensurepip \
 && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/canaryd

COPY --from=build /opt/canaryd /opt/canaryd

# nothing is written outside /var/lib/canaryd: no byte code, no temporary file, no home
ENV PATH=/opt/canaryd/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/canaryd \
    TMPDIR=/var/lib/canaryd \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/canaryd
VOLUME /var/lib/canaryd
EXPOSE 9095
USER 10001:10001
# the address is told, not read from the configuration: a quarter of the CPU time, twice a minute for ever
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["canaryd", "health", "--url", "http://127.0.0.1:9095/healthz"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["canaryd"]
CMD ["run", "--config", "/etc/canaryd/canaryd.yaml"]
