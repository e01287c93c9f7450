# csrec_dist for CPUs, or for CUDA:
#   docker build -t csrec_dist .
#   docker build -t csrec_dist:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# docs/machines.md says how to run it.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /src
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE CITATION.cff ./
COPY configs configs
COPY csrec_dist csrec_dist
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=""
ENV PYTHONUNBUFFERED=1
WORKDIR /opt/csrec_dist
COPY constraints.txt ./
COPY launchers launchers
COPY --from=build /wheels /wheels
RUN python -m pip install --no-cache-dir --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)" \
    && python -m pip install --no-cache-dir --constraint constraints.txt "$(echo /wheels/*.whl)${EXTRAS:+[$EXTRAS]}" \
    && csrec-dist init --list \
    && useradd --create-home --uid 1000 csrec
USER 1000
WORKDIR /work
ENTRYPOINT ["csrec-dist"]
CMD ["--help"]
