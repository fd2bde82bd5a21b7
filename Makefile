# Targets are explained by make help.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Finds Go where sudo's PATH does not, and builds as the tree's owner.
GO := scripts/go

# RUN=REGEXP chooses tests, V=1 shows them as they run, PKG=./dir/... chooses packages.
# ARGS=... are for bench-ha: -quick, -flows N, -parts, -faults and others (-h).
RUN ?=
ARGS ?=
V ?=
PKG ?= ./...
# What one package of kernel tests may take.
LIMIT ?= 25m
# Faults that match area/name, how long to draw them at random, and by what dice:
# another SEED is another course, 0 an unknown one.
FAULT ?=
MINUTES ?= 10
SEED ?= 0
# How long each fuzzer runs.
FUZZTIME ?= 1m

VERSION := $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null | sed 's/^v//')
COMMANDS = $(patsubst cmd/%/main.go,%,$(wildcard cmd/*/main.go))
# -buildvcs=false: git refuses to look into a tree of another owner, as CI may have it.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
	-ldflags "-s -w$(if $(VERSION), -X github.com/vpcproxy/vpcproxy/internal/version.Version=$(VERSION))"

.PHONY: help
help: ## this text
	@echo 'usage: make TARGET'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-13s %s\n", $$1, $$2 }'
	@echo
	@echo '  RUN=REGEXP  only the tests that match (test-unit, test-netns)'
	@echo '  V=1         show tests as they run'
	@echo '  PKG=./x/... only these packages'
	@echo '  VPCPROXY_LAB=native|qemu|uml|auto  the kernel to use; see scripts/lab -h'

.PHONY: setup
setup: ## install what building and testing needs (as root)
	@scripts/setup

.PHONY: build
build: ## static programs in bin/
	@mkdir -p bin
	@((EUID)) || chown --reference=go.mod bin
	@for command in $(COMMANDS); do \
		echo "build bin/$$command"; \
		$(BUILD) -o "bin/$$command" "./cmd/$$command"; \
	done

# All the scenarios on emulated processors would take hours: where this machine's
# kernel will not do, a User-Mode Linux kernel is built once.
test: export VPCPROXY_LAB := $(or $(VPCPROXY_LAB),fast)

.PHONY: test
test: setup test-unit test-netns test-kube ## all tests

.PHONY: test-unit
test-unit: ## the tests that need no kernel of their own, with the race detector
	$(GO) test -race $(if $(V),-v) $(if $(RUN),-run '$(RUN)') $(PKG)
	$(GO) test $(if $(V),-v) $(if $(RUN),-run '$(RUN)') ./pkg/route/bgp/gobgp

.PHONY: test-netns
test-netns: build ## contract and scenario tests, on a kernel with GRE
	scripts/test-netns $(if $(V),-v) $(if $(RUN),-n '$(RUN)') -t $(LIMIT) $(PKG)

.PHONY: fuzz
fuzz: ## every decoder's fuzzer for FUZZTIME=1m; RUN=REGEXP chooses by directory and name
	@scripts/fuzz -t $(FUZZTIME) $(if $(RUN),-n '$(RUN)')

.PHONY: test-kube
test-kube: build ## manifests, RBAC and pods against a real Kubernetes API server, which is built once
	scripts/test-kube $(if $(V),-v) $(if $(RUN),-run '$(RUN)')

.PHONY: demo
demo: setup build ## pods reach two VPCs that own the same subnet; a download survives its proxy
	@scripts/lab-program ./test/netns/demo

.PHONY: bench
bench: setup build ## throughput, latency and programming times, beside the plain recipe
	@VPCPROXY_LAB=$${VPCPROXY_LAB:-fast} scripts/lab-program ./test/netns/bench

.PHONY: bench-ha
bench-ha: build ## failovers and session replication, beside keepalived and conntrackd
	@scripts/setup --bench-ha
	@VPCPROXY_LAB=$${VPCPROXY_LAB:-fast} scripts/lab-program ./test/netns/benchha $(ARGS)

.PHONY: faults
faults: setup build ## everything that can go wrong, one after the other; FAULT=REGEXP chooses
	@VPCPROXY_LAB=$${VPCPROXY_LAB:-fast} scripts/lab-program ./test/faults -run '$(FAULT)'

.PHONY: soak
soak: setup build ## faults at random for MINUTES=10, and what must hold throughout
	@VPCPROXY_LAB=$${VPCPROXY_LAB:-fast} scripts/lab-program ./test/faults -run '$(FAULT)' -soak $(MINUTES)m -seed $(SEED)

.PHONY: bench-bind
bench-bind: setup build ## binding pods: its time, and what 2,000 bound pods cost a packet; ARGS=bind-calls, bind-crowds: the half
	@scripts/bench-bind $(ARGS)

.PHONY: packages
packages: ## a deb and an rpm in build/packages
	@scripts/package

.PHONY: test-packages
test-packages: setup ## install, upgrade, remove and purge the packages (as root)
	@scripts/test-packages

.PHONY: bench-bgp
bench-bgp: setup build ## BGP: many routes, many hosts, failover by withdrawal
	@VPCPROXY_LAB=$${VPCPROXY_LAB:-fast} scripts/lab-program ./test/netns/benchbgp $(ARGS)

.PHONY: lint
lint: ## vet, staticcheck, golangci-lint, govulncheck, shellcheck, gofmt
	@scripts/lint

.PHONY: generate
generate: ## code from the .proto files
	@scripts/generate

.PHONY: clean
clean: ## remove what make built; kernels stay in the cache
	rm -rf bin build
