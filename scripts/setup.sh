#!/usr/bin/env bash
# Installs everything that building and testing babai needs on Debian 12, as root or with sudo:
# Debian packages, a Rust toolchain if there is none of 1.87 or newer, and .venv with the pinned wheels.
#
#   scripts/setup.sh          build and test
#   scripts/setup.sh --cuda   also the CUDA 13.0 compiler (wheels; no GPU or toolkit needed)
#   scripts/setup.sh --build  only what a build needs (no Python packages for the conformance tests)
#
# Safe to run again: what is there already is left alone. Asks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

cuda= build_only=
for arg in "$@"; do
  case $arg in
    --cuda) cuda=1 ;;
    --build) build_only=1 ;;
    -h | --help) sed -n '2,9p' "$0" | cut -c3-; exit 0 ;;
    *) echo "setup.sh: unknown option $arg (see --help)" >&2; exit 2 ;;
  esac
done

say() { printf '== %s\n' "$*"; }
fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || fail "run me as root or install sudo: Debian packages have to be installed"
  as_root=(sudo)
fi

packages=(
  g++ cmake ninja-build ccache pkg-config git ca-certificates unzip curl
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libprotoc-dev libabsl-dev
  prometheus-cpp-dev zlib1g-dev libcurl4-openssl-dev libssl-dev libsqlite3-dev nlohmann-json3-dev libcli11-dev
  libgtest-dev libgmock-dev libbenchmark-dev python3 python3-venv python3-pip
)

rust_is_new_enough() {  # the tokenizer crates need 1.87
  local version
  version=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\)\.\([0-9]*\).*/\1 \2/p') || return 1
  [ -n "$version" ] && command -v cargo >/dev/null || return 1
  set -- $version
  [ "$1" -gt 1 ] || [ "$2" -ge 87 ]
}
rust_is_new_enough || packages+=(cargo-web rustc-web)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${#missing[@]} Debian packages"
  "${as_root[@]}" apt-get update -qq || fail "the Debian package lists could not be fetched: check the network and /etc/apt"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "these Debian packages could not be installed: ${missing[*]}"
fi
hash -r
rust_is_new_enough || fail "no Rust of 1.87 or newer: Debian's rustc-web gives $(rustc --version 2>/dev/null || echo nothing)"

requirements=(-r scripts/requirements.txt)
[ "$build_only" ] && requirements=(torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 googleapis-common-protos==1.76.0)
[ "$cuda" ] && requirements+=(-r scripts/requirements-cuda.txt)
stamp=$(cat scripts/requirements*.txt | sha256sum | cut -c1-16)-${cuda:-0}${build_only:-0}
if [ "$(cat .venv/babai-stamp 2>/dev/null || true)" != "$stamp" ]; then
  say "installing the Python wheels (LibTorch is 530 MB) into .venv"
  [ -x .venv/bin/python ] || python3 -m venv .venv || fail "python3 -m venv failed"
  # --no-deps: LibTorch's other CUDA wheels (4 GB) are not used.
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps "${requirements[@]}" ||
    fail "the wheels of scripts/requirements.txt could not be fetched: check the network and pip's index"
  printf '%s' "$stamp" >.venv/babai-stamp
fi
say "ready: $(g++ -dumpfullversion) g++, $(cmake --version | sed -n '1s/.*version //p') cmake, $(rustc --version | cut -d' ' -f2) rustc, torch in .venv"
