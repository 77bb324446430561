# A stand-in of llama.cpp's own .devops/cuda.Dockerfile: its arguments and its stages, for a server
# that only says how it was built.
ARG BASE_CUDA_DEV_CONTAINER=nvidia/cuda:devel
ARG BASE_CUDA_RUN_CONTAINER=nvidia/cuda:runtime

FROM ${BASE_CUDA_DEV_CONTAINER} AS build
ARG CUDA_DOCKER_ARCH=default
WORKDIR /app
COPY . .
RUN mkdir -p /app/full && \
    sed "s/@ARCH@/${CUDA_DOCKER_ARCH}/" tools/llama-server.in >/app/full/llama-server && \
    chmod 755 /app/full/llama-server

FROM ${BASE_CUDA_RUN_CONTAINER} AS base

FROM base AS full
COPY --from=build /app/full /app
WORKDIR /app
ENTRYPOINT ["/app/tools.sh"]

FROM base AS server
ENV LLAMA_ARG_HOST=0.0.0.0
COPY --from=build /app/full/llama-server /app/
WORKDIR /app
HEALTHCHECK CMD [ "/app/llama-server", "--version" ]
ENTRYPOINT ["/app/llama-server"]
