// babai-server: wiring, signals, drain.
#pragma once

#include "server/engine/engine.h"
#include "server/flags.h"

namespace babai {

// What a test puts in the place of the real thing.
struct ServerParts {
  EngineOptions::RunnerFactory make_runner;  // null: the device's
};

// The exit code after the device has failed; a supervisor then starts another process.
constexpr int kExitDeviceLost = 70;

// Serves until SIGTERM or SIGINT, or until the device fails, then drains. Prints "ready ..." on
// stdout once it serves. Returns the process's exit code: 0; 1: it could not start;
// kExitDeviceLost. A process calls it once, before it starts other threads.
int RunServer(const ServerFlags& flags, const ServerParts& parts = {});

}  // namespace babai
