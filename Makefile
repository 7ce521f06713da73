# hull: `make boot`, `make test`. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The program is built with the flags of .cargo/config.toml, hence for a named target.
CARGO_TARGET_DIR ?= target
built := $(CARGO_TARGET_DIR)/x86_64-unknown-linux-gnu/release/hull
# What `make boot`, `make install` and `make deb` use; with -o build another one.
hull := target/release/hull
payloads := $(patsubst guest/payloads/%.S,target/guest/payloads/%.bin,$(wildcard guest/payloads/*.S))

rust_least := 1.88
build_packages := gcc libc6-dev binutils make flex bison bc libelf-dev libssl-dev lz4 xz-utils patch
lab_packages := qemu-system-x86
# Debian's takes the place of docker's own packages, which do as well.
docker := $(if $(wildcard /usr/bin/dockerd /usr/sbin/dockerd),,docker.io)
test_packages := $(lab_packages) qemu-utils e2fsprogs gdb hyperfine iproute2 iputils-ping passt runc socat tmux chromium bubblewrap fakeroot lintian bzip2 zstd git rsync sqlite3 mmdebstrap umoci skopeo openssl docker-registry systemd $(docker)

.PHONY: help boot build test test-full install deb deps test-deps guest kernel kernel-full initramfs payloads program lint lab fuzz clean
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

# Without access to /dev/kvm the guest boots in the lab's emulated machine, which has KVM.
boot: build ## build what is missing and boot the guest: a shell, or a short proof without a terminal
	@set -- $(hull) run --timing; \
	if [ -t 0 ] && [ -t 1 ]; then terminal=--terminal; \
	else terminal=; set -- "$$@" -- /bin/sh -c 'uname -a; nproc; free; cat /proc/cmdline'; fi; \
	if refused=$$( { : < /dev/kvm; } 2>&1); then exec "$$@"; fi; \
	echo "make: the guest boots in an emulated machine with KVM, some ten times slower than on KVM, because of" \
	"/dev/kvm: $${refused##*: } here; 'hull doctor' says how to get KVM"; \
	( $(call install,$(lab_packages)) ) && exec tests/lab/run $$terminal "$$@"

build: program ## build the guest into target/guest and the program at target/release/hull

# The tests run the debug build, so that the optimized program, minutes to build, is left to `make boot`.
test: test-deps guest lint ## format, lint, documentation, unit tests, this machine's KVM, the lab
	@tests/all

test-full: test-deps build kernel-full lint ## all of it, with what `make test` leaves out to save time
	@tests/all --full

PREFIX ?= /usr/local
install: build ## install the program with manual pages, completions and licences: PREFIX=/usr/local DESTDIR=
	@packaging/install $(hull) "$(DESTDIR)" "$(PREFIX)" $(dir $(wildcard target/guest/full/vmlinux))

packages := target
deb: build ## make a Debian package: target/hull_VERSION_amd64.deb
	@packaging/deb $(hull) $(packages)

deps: ## install what a build needs from Debian
	@$(call install,$(build_packages))
	@command -v rustc cargo > /dev/null || { echo "make: cargo or rustc is missing: install Rust $(rust_least) or newer with rustup (https://rustup.rs)" >&2; exit 1; }
	@set -- $$(rustc --version); printf '%s\n' $(rust_least) "$$2" | sort -CV \
	|| { echo "make: rustc $$2 is too old: install Rust $(rust_least) or newer with rustup (https://rustup.rs)" >&2; exit 1; }

test-deps: deps
	@$(call install,$(test_packages))
	@tests/lab/foreign target/foreign
	@tests/lab/images target/images

# $(call install,PACKAGES): those that are missing, named first; silent when there is none. A second
# round installs what the first removed, as where qemu-utils is newer than the release's qemu-system-x86.
define install
command -v dpkg-query > /dev/null || { echo "make: not a Debian system; it must have: $(1)" >&2; exit 0; }; \
sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
for round in 1 2; do \
  missing=; for package in $(1); do \
    dpkg-query -W -f='$${db:Status-Status}' $$package 2> /dev/null | grep -qx installed || missing="$$missing $$package"; \
  done; \
  [ -n "$$missing" ] || exit 0; \
  echo "make: installing from Debian:$$missing"; \
  $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing || exit 1; \
done
endef

# Both scripts know themselves what is up to date, and leave files alone that are.
kernel: deps
	@guest/kernel/build target/guest

kernel-full: deps ## build the other kernel, which lacks nothing usual, beside the program: 15 minutes
	@guest/kernel/build target/guest/full full

initramfs: deps
	@guest/initramfs/build target/guest/initramfs.cpio

payloads: deps $(payloads) ## assemble the flat guests into target/guest/payloads
target/guest/payloads/%.bin: guest/payloads/%.S $(wildcard guest/payloads/*.inc) | deps
	@mkdir -p $(@D)
	as --64 -I guest/payloads -o $(@:.bin=.o) $<
	ld -m elf_x86_64 -Ttext=0x8000 --oformat binary -e 0x8000 -o $@ $(@:.bin=.o)

guest: kernel initramfs payloads

# build.rs puts the guest inside. The first time, both are built side by side.
program: deps $(if $(wildcard target/guest/vmlinux),guest,payloads)
	$(if $(wildcard target/guest/vmlinux),cargo build --release,@.ci/first-build)
	@mkdir -p target/release && ln -f $(built) target/release/hull 2> /dev/null || cp -f $(built) target/release/hull

lint: guest
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	$(fuzz_check) cargo clippy --manifest-path fuzz/Cargo.toml -- -D warnings

# The fuzz targets with the flags that matter to a check. It links nothing: named a library for that,
# libfuzzer-sys does not compile its own, which would take a C++ compiler.
fuzz_check := RUSTFLAGS="--cfg fuzzing" CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/fuzz CUSTOM_LIBFUZZER_PATH=/none/libfuzzer.a

lab: test-deps guest ## only the tests in the lab: an emulated machine with the stock kvm_amd
	@tests/all --lab

FUZZ_SECONDS ?= 60
fuzz: deps ## run each fuzz target for FUZZ_SECONDS, 60 if not said otherwise
	@$(call install,g++)
	@cargo fuzz --version > /dev/null 2>&1 || { echo "make: installing cargo-fuzz"; cargo install cargo-fuzz --locked; }
	@fuzz/run $(FUZZ_SECONDS) $(FUZZ_TARGETS)

clean: ## remove everything built here; the cache of guest parts stays
	cargo clean
	rm -rf target/guest
