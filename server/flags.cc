#include "server/flags.h"

#include <cctype>
#include <map>

#include "CLI/CLI.hpp"

namespace babai {
namespace {

constexpr char kDescription[] =
    "Quantizes language models and serves them over gRPC.\n\n"
    "  babai-server --data_dir /var/lib/babai --model_roots /models\n\n"
    "prints one line \"ready listen=... metrics=...\" on stdout when it serves, and logs to "
    "stderr.\n"
    "Then, from another terminal:\n\n"
    "  babai quantize /models/x.gguf --name x-w4 --bits 4 --wait\n"
    "  babai chat x-w4 \"Hello\"\n\n"
    "SIGTERM or Ctrl-C: health says NOT_SERVING, running answers may end, a running job goes back "
    "to\n"
    "the queue; a second signal stops at once. Every flag can also be set by the environment "
    "variable\n"
    "BABAI_ and its name in capitals: BABAI_LISTEN, BABAI_DATA_DIR, ...";

// --data_dir -> BABAI_DATA_DIR
std::string Variable(const std::string& flag) {
  std::string name = "BABAI_";
  for (const char c : flag.substr(2)) {
    name += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

template <class T>
CLI::Option* Add(CLI::App& app, const std::string& flag, T& value, const std::string& help) {
  return app.add_option(flag, value, help)->envname(Variable(flag))->capture_default_str();
}

void AddFlags(CLI::App& app, ServerFlags& f) {
  Add(app, "--listen", f.listen,
      "gRPC address, host:port (port 0 = any free one) or unix:/path. Only this host may reach "
      "it: "
      "see --insecure_listen_anywhere");
  Add(app, "--metrics_listen", f.metrics_listen,
      "address of the Prometheus page GET /metrics; empty = none");
  Add(app, "--data_dir", f.data_dir,
      "folder of stored models and jobs, made if it is not there; one server a folder");
  Add(app, "--model_roots", f.model_roots,
      "folders, comma-separated, that file:// URIs may read from; none = no local models")
      ->delimiter(',');
  Add(app, "--device", f.device,
      "auto, cpu or cuda; auto takes a GPU that this build can use, if there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  Add(app, "--threads", f.threads, "compute threads; 0 = one a core")->check(CLI::Range(0, 1024));
  Add(app, "--memory_limit", f.memory_limit,
      "memory for weights and KV caches of all loaded models, with a unit if you like (8GB); "
      "0 = 80 % of the machine's. Idle models make room, the longest unused first")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  Add(app, "--kv_bytes_per_model", f.kv_bytes_per_model,
      "KV cache of a model (512MB); 0 = the smaller of 1 GiB and eight full contexts")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  Add(app, "--max_queue", f.max_queue,
      "waiting requests a model; more are refused with RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1'000'000));
  Add(app, "--max_sequences", f.max_sequences, "sequences a model generates at a time")
      ->check(CLI::Range(1, 4096));
  Add(app, "--max_context", f.max_context,
      "tokens a sequence may hold; 0 = what the model was made for")
      ->check(CLI::Range(0, 100'000'000));
  Add(app, "--drain_seconds", f.drain_seconds,
      "how long running answers may go on after SIGTERM; keep it below the grace time of whoever "
      "sends it")
      ->check(CLI::Range(0, 86'400));
  app.add_flag("--insecure_listen_anywhere", f.insecure_listen_anywhere,
               "allow a --listen that other machines can reach. There is no authentication in this "
               "release: whoever reaches the port can use and delete every model. Put a proxy with "
               "authentication in front instead")
      ->envname("BABAI_INSECURE_LISTEN_ANYWHERE");
  const std::map<std::string, LogFormat> formats = {{"text", LogFormat::kText},
                                                    {"json", LogFormat::kJson}};
  app.add_option("--log_format", f.log_format, "text or json (an object a line)")
      ->envname("BABAI_LOG_FORMAT")
      ->transform(CLI::CheckedTransformer(formats))
      ->default_str("text");
  const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                  {"info", LogLevel::kInfo},
                                                  {"warning", LogLevel::kWarning},
                                                  {"error", LogLevel::kError}};
  app.add_option("--log_level", f.log_level, "debug (every call), info, warning or error")
      ->envname("BABAI_LOG_LEVEL")
      ->transform(CLI::CheckedTransformer(levels))
      ->default_str("info");
  app.set_version_flag("--version", "babai-server " BABAI_VERSION);
}

}  // namespace

int ParseServerFlags(int argc, char** argv, ServerFlags& flags) {
  CLI::App app(kDescription, "babai-server");
  AddFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return -1;
}

}  // namespace babai
