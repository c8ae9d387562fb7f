#!/usr/bin/env bash
# Sets up, builds and runs every test: what CI runs.
#
#   scripts/test.sh [PRESET] [ctest options]     default preset: dev
#
# Tests on larger real data run when BABAI_DATA names the data folder, and are skipped otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-dev}
[ $# -gt 0 ] && shift
scripts/setup.sh
begin=$(date +%s)
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset"
echo "== built in $(($(date +%s) - begin)) s"
ctest --preset "$preset" "$@"
