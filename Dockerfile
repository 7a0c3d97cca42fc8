# The server as an image. `docker compose up` builds it and starts Prometheus beside it.
FROM python:3.13-slim AS build
WORKDIR /source
RUN python -m venv /opt/bptt
COPY constraints.txt ./
# Dependencies, those of the extras `server` and `security` included, are a layer of their own: a change of the code does not install
# them again.
COPY pyproject.toml README.md LICENSE ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['server'], *project['optional-dependencies']['security'], sep='\n')" > requirements.txt \
    && /opt/bptt/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY bptt_core bptt_core
COPY service service
RUN /opt/bptt/bin/pip install --no-cache-dir --no-deps .

FROM python:3.13-slim
RUN useradd --system --create-home bptt && install -d -m 700 -o bptt -g bptt /data /secrets /var/cache/bptt
COPY --from=build /opt/bptt /opt/bptt
COPY deploy/healthcheck.py /opt/bptt/healthcheck.py
# Compiled kernels depend on the processor, so their cache is a folder that the server can write.
ENV PATH=/opt/bptt/bin:$PATH NUMBA_CACHE_DIR=/var/cache/bptt PYTHONUNBUFFERED=1
USER bptt
# Compile the kernels of all cells now, so that no model waits. On another type of processor they are compiled again, and
# stay in the volume. A new volume begins as the folder is in the image.
RUN bptt warm-up --all
VOLUME /data
VOLUME /var/cache/bptt
EXPOSE 50051 9464
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python", "/opt/bptt/healthcheck.py", "127.0.0.1:50051"]
ENTRYPOINT ["bptt"]
# 0.0.0.0 is the container's own network; the published ports decide which hosts reach it from outside. Certificate, key
# and callers come from a volume or a secret: see docs/security.md.
CMD ["serve", "--address", "0.0.0.0:50051", "--metrics-address", "0.0.0.0:9464", "--data", "/data", "--tls-cert", "/secrets/server.pem", "--tls-key", "/secrets/server-key.pem", "--callers", "/secrets/callers.json"]
