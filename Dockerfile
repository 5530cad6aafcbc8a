# syntax=docker/dockerfile:1
# The relay as the image of a Fargate task: one static program and nothing else, no shell, no package, no CA bundle
# (the RDS certificate authorities are inside the program). `docker build .` builds it from source; `make image` builds
# the program outside and puts the same last stage around it.

FROM docker.io/library/rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make musl-tools && rm -rf /var/lib/apt/lists/*
# x86_64 or aarch64, as the platform that is built for.
RUN rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY tests/sandbox tests/sandbox
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-musl" && \
    env "CC_$(echo "$target" | tr - _)=musl-gcc" \
        cargo build --locked --release --target "$target" --bin bastion --no-default-features --features relay && \
    mkdir -p /out && cp "target/$target/release/bastion" /out/bastion

# make image: from here on
FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bastion" \
      org.opencontainers.image.description="The relay of an on-demand bastion for private RDS and Aurora databases" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build --chmod=0755 /out/bastion /bastion
# What the agent of ECS Exec writes; with a read-only root filesystem these must be volumes.
VOLUME ["/managed-agents", "/var/lib/amazon/ssm", "/var/log/amazon/ssm"]
USER 65532:65532
# ECS reads the health check of the task definition, not this one; it is the same command there.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/bastion", "relay", "--health"]
ENTRYPOINT ["/bastion", "relay"]
