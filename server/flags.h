// The command line of babai-server.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "server/log.h"

namespace babai {

struct ServerFlags {
  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:9464";
  std::filesystem::path data_dir = "babai-data";
  std::vector<std::string> model_roots;
  std::string device = "auto";
  int threads = 0;
  uint64_t memory_limit = 0;
  uint64_t kv_bytes_per_model = 0;
  int64_t max_queue = 256;
  int64_t max_sequences = 32;
  int64_t max_context = 0;
  int drain_seconds = 30;
  bool insecure_listen_anywhere = false;
  LogFormat log_format = LogFormat::kText;
  LogLevel log_level = LogLevel::kInfo;
};

// Reads flags and BABAI_... variables. Returns -1 to go on, or the exit code: 0 after --help or
// --version, 2 for wrong usage (said on stderr).
int ParseServerFlags(int argc, char** argv, ServerFlags& flags);

}  // namespace babai
