# The relay as the image of a Fargate task: one static program, its user's name and empty folders. No shell, no package, no
# CA bundle (the certificate authorities of RDS and STS are inside the program).
#
# `docker build .` builds the program from source, for the platform that is asked for, on whatever it runs on.
# `make image` builds the program outside, with the same script, and puts the same last stage around it.

FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95-slim-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY scripts scripts
RUN scripts/setup static "$TARGETARCH"
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY src src
COPY tests/sandbox tests/sandbox
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    scripts/static "$TARGETARCH" /out/bastion && scripts/image-root /out/bastion /out/root

# make image: from here on
FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bastion" \
      org.opencontainers.image.description="The relay of an on-demand bastion for private RDS and Aurora databases" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/root/ /
# What the agent of ECS Exec writes; with a read-only root filesystem these must be volumes.
VOLUME ["/managed-agents", "/var/lib/amazon/ssm", "/var/log/amazon/ssm"]
USER 65532:65532
# ECS reads the health check of the task definition, not this one; it is the same command there.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/bastion", "relay", "--health"]
ENTRYPOINT ["/bastion", "relay"]
