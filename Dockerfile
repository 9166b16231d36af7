# syntax=docker/dockerfile:1
# graphpost in a small image that runs as nobody.
#
#   docker build -t graphpost .
#   docker run -p 2525:2525 -v graphpost-spool:/var/lib/graphpost -v ./config:/etc/graphpost:ro graphpost
#
# In the configuration, a listener on 0.0.0.0 needs `networks`: say which clients may connect.

ARG BUILDER=rust:1.95-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin graphpost

FROM ${BASE}
# The certificate authorities are those of the builder, so that nothing is installed here.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/graphpost /usr/bin/graphpost
COPY --from=build /src/LICENSE /src/LICENSE-MIT /src/LICENSE-APACHE /usr/share/doc/graphpost/
# A volume made at this place takes over its owner.
RUN install -d -m 0700 -o 65532 -g 65532 /var/lib/graphpost
USER 65532:65532
VOLUME /var/lib/graphpost
EXPOSE 2525 8025
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s CMD ["/usr/bin/graphpost", "healthcheck"]
ENTRYPOINT ["/usr/bin/graphpost"]
CMD ["serve"]
