// The verbs of the `babai` command. Each does its work, prints, and returns the exit code: 0 done,
// 1 refused or failed (stderr names code, reason and field).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/terminal.h"

namespace babai::client {

struct Session {
  Client& client;
  Interrupts& interrupts;
  bool json = false;  // one JSON object on stdout, nothing else there
};

struct QuantizeFlags {
  std::string source;  // URI or local path
  std::string name;
  std::string recipe;       // a preset; empty = the server's default
  std::string recipe_json;  // a local file, instead of a preset
  std::optional<int> bits, group_size, embedding_bits;
  std::optional<double> damping, target_bits, outliers;
  std::optional<int64_t> target_bytes;
  bool symmetric = false;
  std::string calibration = "self";  // "self", a local text or .jsonl file, or a file:// URI
  std::optional<int> samples, length, held_out;
  std::optional<uint64_t> seed;
  std::string request_id;
  bool overwrite = false;
  bool wait = false;
};

struct GenerateFlags {
  std::string model;
  std::string prompt;  // "-" = stdin
  std::string ids;     // a file or "1,2,3"
  std::string system;  // chat only
  std::optional<int64_t> max_tokens;
  std::optional<float> temperature, top_p, min_p, presence_penalty, frequency_penalty,
      repetition_penalty;
  std::optional<int> top_k;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false, include_stop = false, logprobs = false, keep_special = false;
  bool parse_special = false;
  bool no_stream = false;
};

struct EvaluateFlags {
  std::string model;
  std::string text;  // local file, "-" = stdin
  std::string ids;
  std::optional<int> context, max_windows;
  std::string reference;
  bool served_numerics = false;
};

struct TokenizeFlags {
  std::string model;
  std::string text;  // local file, "-" = stdin
  bool no_special = false, parse_special = false;
};

int RunQuantize(const Session& session, const QuantizeFlags& flags);

int RunJobsList(const Session& session);
int RunJobsShow(const Session& session, const std::string& id);
int RunJobsWatch(const Session& session, const std::string& id);
int RunJobsCancel(const Session& session, const std::string& id);
int RunJobsDelete(const Session& session, const std::string& id);

int RunModelsList(const Session& session);
int RunModelsShow(const Session& session, const std::string& name);
// "load", "unload", "pin", "unpin" or "delete".
int RunModelsChange(const Session& session, const std::string& verb, const std::string& name);

int RunGenerate(const Session& session, const GenerateFlags& flags);
// One message, or a conversation on the terminal when flags.prompt is empty.
int RunChat(const Session& session, const GenerateFlags& flags);

int RunEvaluate(const Session& session, const EvaluateFlags& flags);
int RunTokenize(const Session& session, const TokenizeFlags& flags);
int RunRecipesList(const Session& session);
int RunInfo(const Session& session);

}  // namespace babai::client
