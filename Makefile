# Every target is idempotent, and quick when there is nothing to do.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

IMAGES := build/images
export RHIZOME_TEST_IMAGE := $(CURDIR)/$(IMAGES)/busybox.tar
KERNEL := build/kernel/vmlinuz
export RHIZOME_TEST_KERNEL := $(CURDIR)/$(KERNEL)

.PHONY: help setup build release demo test lint bench clean

help: ## Show this help
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile

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

bench: release ## Measure: submit to result, and the queue beside raw Redis
	target/release/rhizome bench submit
	target/release/rhizome bench queue

clean: ## Remove what was built
	cargo clean
	rm -rf build
