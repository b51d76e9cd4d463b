# Every target is idempotent, and quick when there is nothing to do.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

IMAGES := build/images
export RHIZOME_TEST_IMAGE := $(CURDIR)/$(IMAGES)/busybox.tar
KERNEL := build/kernel/vmlinuz
export RHIZOME_TEST_KERNEL := $(CURDIR)/$(KERNEL)

.PHONY: help setup build release demo test lint bench bench-peers chaos fuzz clean

help: ## Show this help
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile

setup: $(IMAGES)/busybox.tar ## Install what is missing (Debian packages, as root)
	@scripts/setup.sh
	@scripts/fetch-kernel.sh $(KERNEL)

$(IMAGES)/busybox.tar: scripts/build-image.sh scripts/setup.sh
	@scripts/setup.sh
	@mkdir -p $(IMAGES)
	scripts/build-image.sh $@

build: setup ## Build the binary for development: target/debug/rhizome
	cargo build --locked

release: setup ## Build the optimised binary: target/release/rhizome
	cargo build --locked --release

demo: build ## Start everything, deploy scripts/demo.rhai, show the result, clean up
	scripts/demo.sh target/debug/rhizome $(IMAGES)/busybox.tar

lint: setup ## Formatting, clippy, crate rules
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/deny.sh

test: lint ## Everything that must hold: lint, all tests, doctests
	cargo build --locked
	cargo nextest run --locked --workspace --no-fail-fast
	cargo test --locked --workspace --doc --quiet

bench: release ## Measure: submit to result, the queue beside raw Redis, what journals cost, a ledger under its fleet
	target/release/rhizome bench submit
	target/release/rhizome bench queue
	target/release/rhizome bench script
	target/release/rhizome bench ledger

# What is given on the command line:
# make chaos SEED=1 JOBS=10000 RUNNERS=8 MINUTES=2 CUTS=3 DEPLOYMENTS=100 SCRIPTS=50
JOBS ?= 100000
RUNNERS ?= 16
MINUTES ?= 10
CUTS ?= 5
DEPLOYMENTS ?= 300
SCRIPTS ?= 500
chaos: setup ## Kill, freeze and cut while 100,000 jobs and 300 deployments run; prints its SEED, and takes one
	cargo build --locked -p rhizome-chaos -p rhizome-cli
	target/debug/chaos --jobs $(JOBS) --runners $(RUNNERS) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))
	RHIZOME_POWER_CUTS=$(CUTS) cargo nextest run --locked -p rhizome-chaos --run-ignored all -E 'test(/^power::/)'
	RHIZOME_STORM=$(DEPLOYMENTS) RHIZOME_SCRIPTS=$(SCRIPTS) $(if $(SEED),RHIZOME_SEED=$(SEED)) \
		cargo nextest run --locked -p rhizome-tests --no-capture -E 'test(/^storm::|runners_die/)'

# What is given on the command line: make fuzz SECONDS=600 SEED=1
SECONDS ?= 120
fuzz: build ## Send the ledger's API what its description allows, and what not; prints its SEED, and takes one
	scripts/fuzz/run.sh target/debug/rhizome target/fuzz-venv $(SECONDS) $(SEED)

bench-peers: ## Measure: the queue beside other queues on Redis (bench/README.md)
	@scripts/setup.sh
	@# Not "npm ci": it wants the binaries for all platforms in the lock, and not every mirror has them.
	@npm install --no-save --ignore-scripts --prefix bench/node --silent \
		|| echo "npm is missing or failed: BullMQ on Node is left out (apt-get install nodejs npm)"
	cargo build --release --manifest-path bench/Cargo.toml
	bench/target/release/peers

clean: ## Remove what was built
	cargo clean
	rm -rf build bench/target bench/node/node_modules
