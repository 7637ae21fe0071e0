#!/usr/bin/env bash
# 64-bit Arm without an Arm machine: builds the whole workspace for it and runs tests under emulation (qemu-user), the
# kernels' and the engine's unless others are named:
#
#     tools/arm_check.sh                # the build, then -p timm-kernels -p timm-cpu
#     tools/arm_check.sh -p timm-data   # the build, then these; anything that cargo test takes
#
# For any Debian or Ubuntu. Installs nothing: says what is missing. Emulation tells right from wrong, not fast from slow:
# it takes minutes where the machine itself takes seconds. On an Arm machine `cargo test --workspace` is the check.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
root=/usr/aarch64-linux-gnu

missing=()
command -v cargo > /dev/null || missing+=("a Rust toolchain: https://rustup.rs")
if command -v rustc > /dev/null && [ ! -d "$(rustc --print target-libdir --target $target)" ]; then
    missing+=("Rust's library for Arm: rustup target add $target")
fi
command -v aarch64-linux-gnu-gcc > /dev/null || missing+=("a linker for Arm: apt-get install gcc-aarch64-linux-gnu")
[ -e $root/lib/libc.so.6 ] || missing+=("Arm's C library: apt-get install libc6-dev-arm64-cross")
command -v qemu-aarch64 > /dev/null || missing+=("the emulator: apt-get install qemu-user")
if [ ${#missing[@]} -gt 0 ]; then
    printf 'missing: %s\n' "${missing[@]}" >&2
    exit 1
fi

# The `cc` crate, for dependencies with C in them, finds the compiler by the target's name.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $root"

step() { printf '\n== %s\n' "$*"; "$@"; }

[ $# -gt 0 ] || set -- -p timm-kernels -p timm-cpu
step cargo build --workspace --target $target
step cargo test --target $target "$@"
