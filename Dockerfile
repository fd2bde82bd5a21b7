# The programs and nothing else: no shell, no library, no package. Build them
# first (make build), or have scripts/image make the same image without a
# container engine, reproducibly.
#
# There is no iptables in it, so that the agent translates addresses with nftables
# (nat.backend: auto). The second target has both variants of it, for hosts whose
# FORWARD chain drops by default: docker build --target iptables .
FROM debian:bookworm-slim AS iptables
RUN apt-get update && apt-get install -y --no-install-recommends iptables && rm -rf /var/lib/apt/lists/*
COPY bin/vpcproxyd bin/vpcproxyctl bin/vpcproxy-cni /
ENTRYPOINT ["/vpcproxyd"]

FROM scratch
COPY bin/vpcproxyd bin/vpcproxyctl bin/vpcproxy-cni /
ENTRYPOINT ["/vpcproxyd"]
