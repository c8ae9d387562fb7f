#include "server/jobs/calibration.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "server/jobs/spec_json.h"
#include "server/reason/reason.h"
#include "server/store/file.h"
#include "server/store/model_uri.h"
#include "server/store/sha256.h"

namespace babai {
namespace {

constexpr int64_t kMaxFileBytes = 64 << 20;
constexpr int64_t kMaxSequences = 4096;
constexpr int64_t kMinLength = 2;  // one prediction
// The tokenizer's memory grows with the text it is given at once; longer texts go in pieces.
constexpr size_t kPieceBytes = 1 << 20;

absl::Status CheckRange(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidField("calibration." + std::string(field), "must be in [" + std::to_string(low) +
                                                               ", " + std::to_string(high) +
                                                               "], not " + std::to_string(value));
}

absl::Status CheckIds(const std::vector<Sequence>& sequences, int64_t vocab) {
  for (const Sequence& ids : sequences) {
    for (const int32_t id : ids) {
      if (id >= 0 && id < vocab) continue;
      return InvalidField(
          "calibration.token_ids",
          "token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(vocab));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::filesystem::path> ResolveData(const CalibrationSpec& spec,
                                                  const std::vector<std::filesystem::path>& roots) {
  const auto uri = ModelUri::Parse(spec.uri, "calibration.uri");
  if (!uri.ok()) return uri.status();
  const std::string extension = uri->path().extension().string();
  if (extension != ".txt" && extension != ".jsonl") {
    return InvalidField("calibration.uri", "must name a .txt or a .jsonl file");
  }
  auto path = ResolveLocal(*uri, roots);
  if (path.ok() && !std::filesystem::is_regular_file(*path)) {
    return InvalidField("calibration.uri", "is not a file");
  }
  return path;
}

absl::StatusOr<std::string> ReadData(const CalibrationSpec& spec,
                                     const std::vector<std::filesystem::path>& roots) {
  const auto path = ResolveData(spec, roots);
  if (!path.ok()) return path.status();
  auto text = ReadFile(*path, kMaxFileBytes);
  if (text.status().code() == absl::StatusCode::kResourceExhausted) {
    return InvalidField("calibration.uri", "the file is larger than 64 MiB");
  }
  return text;
}

// The texts of a jsonl file: a line, an object with a "text".
absl::StatusOr<std::vector<std::string>> ParseJsonLines(std::string_view data) {
  std::vector<std::string> texts;
  for (int64_t line = 1; !data.empty(); ++line) {
    const size_t end = std::min(data.find('\n'), data.size());
    const std::string_view row = data.substr(0, end);
    data.remove_prefix(std::min(end + 1, data.size()));
    if (row.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto json = nlohmann::json::parse(row, nullptr, /*allow_exceptions=*/false);
    const bool good = json.is_object() && json.contains("text") && json["text"].is_string();
    if (!good) {
      return InvalidField("calibration.uri", "line " + std::to_string(line) +
                                                 " is not a JSON object with a string \"text\"");
    }
    texts.push_back(json["text"].get<std::string>());
  }
  return texts;
}

absl::StatusOr<std::vector<std::string>> ReadTexts(
    const CalibrationSpec& spec, const std::vector<std::filesystem::path>& roots) {
  if (spec.source == CalibrationSpec::Source::kTexts) return spec.texts;
  auto data = ReadData(spec, roots);
  if (!data.ok()) return data.status();
  if (std::filesystem::path(spec.uri).extension() == ".jsonl") return ParseJsonLines(*data);
  return std::vector<std::string>{*std::move(data)};
}

// At most kPieceBytes of the front of `text`, up to the end of a line if there is one, else of a
// character: a byte 10xxxxxx continues a UTF-8 character.
std::string_view FrontPiece(std::string_view text) {
  if (text.size() <= kPieceBytes) return text;
  const size_t newline = text.rfind('\n', kPieceBytes - 1);
  if (newline != std::string_view::npos) return text.substr(0, newline + 1);
  size_t end = kPieceBytes;
  while (end > kPieceBytes - 4 && (static_cast<uint8_t>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end);
}

absl::StatusOr<Sequence> Tokenize(const std::vector<std::string>& texts, const Tokenizer& tokenizer,
                                  const std::function<bool()>& stop) {
  Sequence tokens;
  for (size_t i = 0; i < texts.size(); ++i) {
    for (std::string_view rest = texts[i]; !rest.empty();) {
      if (stop()) return absl::CancelledError("stopped");
      const std::string_view piece = FrontPiece(rest);
      rest.remove_prefix(piece.size());
      const auto ids = tokenizer.Encode(piece, /*add_special=*/false, /*parse_special=*/false);
      if (!ids.ok()) {
        return Refuse(ids.status().code(), reason::kInvalidField, "calibration",
                      "text " + std::to_string(i) + ": " + std::string(ids.status().message()));
      }
      tokens.insert(tokens.end(), ids->begin(), ids->end());
    }
  }
  return tokens;
}

absl::StatusOr<Sequence> AllTokens(const CalibrationSpec& spec, const Checkpoint& checkpoint,
                                   const std::vector<std::filesystem::path>& roots,
                                   const std::function<bool()>& stop) {
  if (spec.source == CalibrationSpec::Source::kTokenIds) {
    Sequence tokens;
    for (const Sequence& ids : spec.token_ids) tokens.insert(tokens.end(), ids.begin(), ids.end());
    return tokens;
  }
  const auto texts = ReadTexts(spec, roots);
  if (!texts.ok()) return texts.status();
  const auto tokenizer = MakeTokenizer(checkpoint.tokenizer());
  if (!tokenizer.ok()) return tokenizer.status();
  return Tokenize(*texts, **tokenizer, stop);
}

absl::Status CheckFields(const CalibrationSpec& spec, const ModelConfig& config,
                         const std::vector<std::filesystem::path>& roots) {
  if (auto s = CheckRange("samples", spec.samples, 1, kMaxSequences); !s.ok()) return s;
  if (auto s = CheckRange("held_out", spec.held_out, 0, kMaxSequences); !s.ok()) return s;
  const int64_t length = SequenceLength(spec, config);
  if (auto s = CheckRange("length", length, kMinLength, config.max_positions); !s.ok()) return s;
  switch (spec.source) {
    case CalibrationSpec::Source::kTexts:
      return absl::OkStatus();
    case CalibrationSpec::Source::kTokenIds:
      return CheckIds(spec.token_ids, config.vocab);
    case CalibrationSpec::Source::kUri:
      return ResolveData(spec, roots).status();
    case CalibrationSpec::Source::kSelf:
      return absl::OkStatus();
  }
  return InvalidField("calibration", "has an unknown source");
}

// Whether the data came with the request and is quickly tokenized: then it is, before the job is
// queued, so that too little of it is refused at the door.
bool IsSmall(const CalibrationSpec& spec) {
  constexpr size_t kSmallBytes = 1 << 20;
  if (spec.source == CalibrationSpec::Source::kTokenIds) return true;
  if (spec.source != CalibrationSpec::Source::kTexts) return false;
  size_t bytes = 0;
  for (const std::string& text : spec.texts) bytes += text.size();
  return bytes <= kSmallBytes;
}

}  // namespace

int64_t HeldOutSequences(const CalibrationSpec& spec) {
  return spec.held_out > 0 ? spec.held_out : std::max<int64_t>(1, spec.samples / 16);
}

int64_t SequenceLength(const CalibrationSpec& spec, const ModelConfig& config) {
  constexpr int64_t kUsual = 512;
  return spec.length > 0 ? spec.length : std::min(kUsual, config.max_positions);
}

absl::Status CheckCalibration(const CalibrationSpec& spec, const Checkpoint& checkpoint,
                              const std::vector<std::filesystem::path>& roots) {
  const ModelConfig& config = checkpoint.config();
  if (auto status = CheckFields(spec, config, roots); !status.ok()) return status;
  if (!IsSmall(spec)) return absl::OkStatus();
  return LoadCalibration(spec, checkpoint, roots, [] { return false; }).status();
}

absl::StatusOr<std::string> CalibrationDigest(const CalibrationSpec& spec,
                                              const ModelConfig& config,
                                              const std::vector<std::filesystem::path>& roots) {
  Sha256 hash;
  hash.AddField(std::to_string(static_cast<int>(spec.source)));
  for (const int64_t n : {spec.samples, HeldOutSequences(spec), SequenceLength(spec, config)}) {
    hash.AddField(std::to_string(n));
  }
  if (spec.source == CalibrationSpec::Source::kSelf) {
    hash.AddField(std::to_string(spec.seed));
  } else if (spec.source == CalibrationSpec::Source::kUri) {
    const auto data = ReadData(spec, roots);
    if (!data.ok()) return data.status();
    hash.AddField(std::filesystem::path(spec.uri).extension().string());
    hash.AddField(*data);
  } else {
    hash.AddField(CalibrationDataToJson(spec));
  }
  return hash.HexDigest();
}

absl::StatusOr<std::vector<Sequence>> CutSequences(const Sequence& tokens, int64_t samples,
                                                   int64_t held_out, int64_t length) {
  const int64_t have = tokens.size();
  const int64_t count = samples + held_out;
  if (have < count * length) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kCalibrationTooSmall, "calibration",
                  "has " + std::to_string(have) + " tokens and needs " +
                      std::to_string(count * length) + " (" + std::to_string(samples) + " + " +
                      std::to_string(held_out) + " held-out sequences of " +
                      std::to_string(length) + "); give more data, or lower samples or length");
  }
  std::vector<Sequence> sequences;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = count == 1 ? 0 : i * (have - length) / (count - 1);
    sequences.emplace_back(tokens.begin() + begin, tokens.begin() + begin + length);
  }
  return sequences;
}

CalibrationSet SplitHeldOut(std::vector<Sequence> sequences, int64_t held_out) {
  CalibrationSet set;
  const int64_t count = sequences.size();
  set.length = count == 0 ? 0 : sequences[0].size();
  for (int64_t i = 0; i < count; ++i) {
    // The last one of each of `held_out` equal parts.
    const bool held = (i + 1) * held_out / count > i * held_out / count;
    (held ? set.held_out : set.training).push_back(std::move(sequences[i]));
  }
  return set;
}

absl::StatusOr<CalibrationSet> LoadCalibration(const CalibrationSpec& spec,
                                               const Checkpoint& checkpoint,
                                               const std::vector<std::filesystem::path>& roots,
                                               const std::function<bool()>& stop) {
  const auto tokens = AllTokens(spec, checkpoint, roots, stop);
  if (!tokens.ok()) return tokens.status();
  const int64_t held_out = HeldOutSequences(spec);
  const ModelConfig& config = checkpoint.config();
  auto sequences = CutSequences(*tokens, spec.samples, held_out, SequenceLength(spec, config));
  if (!sequences.ok()) return sequences.status();
  if (config.add_bos && config.bos >= 0) {
    for (Sequence& sequence : *sequences) sequence[0] = config.bos;
  }
  return SplitHeldOut(*std::move(sequences), held_out);
}

}  // namespace babai
