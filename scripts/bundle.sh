#!/usr/bin/env bash
# Collects binaries and the libraries a bare Linux machine does not have into dist/: what a GPU machine
# with torch 2.11 of its own needs. LibTorch is left out (450 MB): run with its folder on LD_LIBRARY_PATH,
#
#   LD_LIBRARY_PATH=dist/lib:$(python3 -c 'import torch; print(torch.__path__[0])')/lib dist/bin/babai-server ...
#
#   scripts/bundle.sh [PRESET] [DIR]     default: release dist
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
out=${2:-dist}
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
for binary in build/"$preset"/bin/*; do
  [ -f "$binary" ] && [ -x "$binary" ] || continue
  install -m 755 "$binary" "$out/bin/"
  strip "$out/bin/$(basename "$binary")"
done
# Everything but the C library family, which belongs to the machine, and LibTorch with its companions.
for binary in "$out"/bin/*; do
  ldd "build/$preset/bin/$(basename "$binary")" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p'
done | sort -u | grep -vE '/(ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libgcc_s)[.-]' |
  grep -vE '/(libtorch|libc10|libcudart|libcupti|libgomp)' | xargs -r install -m 644 -t "$out/lib"
du -sh "$out" | cut -f1
