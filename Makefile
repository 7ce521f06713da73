# hull: `make build`, `make test`. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PAYLOADS := $(patsubst guest/payloads/%.S,target/guest/payloads/%.bin,$(wildcard guest/payloads/*.S))

.PHONY: help build payloads test clean
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

# cc, as, ld and objcopy are all that is needed beside cargo.
.PHONY: deps
deps:
	@command -v cargo >/dev/null || { echo "make: cargo is missing: install Rust 1.88 or newer with rustup" >&2; exit 1; }
	@missing=; for p in gcc binutils libc6-dev; do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing from Debian:$$missing"; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -q && $$sudo apt-get install -y --no-install-recommends $$missing; fi

payloads: $(PAYLOADS) ## assemble the flat guests into target/guest/payloads
target/guest/payloads/%.bin: guest/payloads/%.S guest/payloads/header.inc
	@mkdir -p $(@D)
	as --64 -I guest/payloads -o $(@:.bin=.o) $<
	ld -m elf_x86_64 -Ttext=0x8000 --oformat binary -e 0x8000 -o $@ $(@:.bin=.o)

build: deps payloads ## build the program at target/release/hull
	cargo build --release
	@mkdir -p target/release && ln -f target/x86_64-unknown-linux-gnu/release/hull target/release/hull

test: deps payloads ## format, lint, documentation, unit tests and this machine's KVM
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	cargo test --workspace -- --nocapture

clean: ## remove everything built
	cargo clean
