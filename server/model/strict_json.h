// JSON from an untrusted file: bounded depth and size, valid UTF-8, no duplicate keys; and a reader
// of typed, ranged fields.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace babai {

struct JsonLimits {
  int depth = 32;            // nested arrays and objects
  int64_t values = 1 << 20;  // numbers, strings, objects ... in the whole text
  // Top-level keys whose values become null unread (a vocabulary that nobody asked for).
  std::vector<std::string> dropped;
};

// An object. `file` names it in errors (INVALID_MODEL_FILE).
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view file,
                                               const JsonLimits& limits = {});

// Reads fields of one object. The first error sticks and later reads return anything: read all,
// then ask status(). A key that is absent or null takes the fallback; without one it is an error.
class FieldReader {
 public:
  // `where` starts each message's field: "config.json", "config.json: rope_scaling".
  FieldReader(const nlohmann::json& object, std::string where);

  bool Has(std::string_view key) const;  // present and not null
  int64_t Int(std::string_view key, int64_t low, int64_t high,
              std::optional<int64_t> fallback = std::nullopt);
  double Number(std::string_view key, double low, double high,
                std::optional<double> fallback = std::nullopt);
  bool Bool(std::string_view key, std::optional<bool> fallback = std::nullopt);
  std::string String(std::string_view key, std::optional<std::string> fallback = std::nullopt);
  // Exactly `size` numbers.
  std::vector<double> Numbers(std::string_view key, size_t size, double low, double high);
  // An integer or a list of integers, in [low, high]; empty when absent.
  std::vector<int64_t> IntOrInts(std::string_view key, int64_t low, int64_t high);

  const absl::Status& status() const { return status_; }
  const std::string& where() const { return where_; }
  void Fail(std::string_view key, std::string_view message);

 private:
  const nlohmann::json* Get(std::string_view key, bool required);

  const nlohmann::json& object_;
  std::string where_;
  absl::Status status_;
};

}  // namespace babai
