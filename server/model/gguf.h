// The header of a GGUF file: metadata and tensor descriptions.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/input_file.h"
#include "server/model/stored_tensor.h"

namespace babai {

// Integers of every width are widened (as are bools inside arrays); u64 above int64's range is
// refused.
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>>;

struct GgufHeader {
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<StoredTensor>
      tensors;  // shapes slowest dimension first, offsets from the file's start
};

// Refuses (INVALID_MODEL_FILE or UNSUPPORTED_FORMAT): counts and lengths that the rest of the file
// can not hold, duplicate keys or names, types that do not exist, an alignment that is no power of
// two, tensors beyond the file or over each other.
absl::StatusOr<GgufHeader> ReadGgufHeader(const InputFile& file, int index);

// Typed look-ups with the rules of FieldReader: the first error sticks, absent takes the fallback.
class GgufFields {
 public:
  GgufFields(const GgufHeader& header, std::string file)
      : header_(header), file_(std::move(file)) {}

  bool Has(std::string_view key) const { return header_.metadata.count(key) != 0; }
  bool IsList(std::string_view key) const;  // of integers or bools
  int64_t Int(std::string_view key, int64_t low, int64_t high,
              std::optional<int64_t> fallback = std::nullopt);
  double Number(std::string_view key, double low, double high,
                std::optional<double> fallback = std::nullopt);
  bool Bool(std::string_view key, bool fallback);
  std::string String(std::string_view key, std::optional<std::string> fallback = std::nullopt);
  // nullptr when absent.
  template <typename T>
  const std::vector<T>* List(std::string_view key);

  const absl::Status& status() const { return status_; }
  const std::string& file() const { return file_; }
  void Fail(std::string_view key, std::string_view message);

 private:
  const GgufValue* Get(std::string_view key, bool required);

  const GgufHeader& header_;
  std::string file_;
  absl::Status status_;
};

template <typename T>
const std::vector<T>* GgufFields::List(std::string_view key) {
  const GgufValue* value = Get(key, false);
  if (value == nullptr) return nullptr;
  const auto* list = std::get_if<std::vector<T>>(value);
  if (list == nullptr) Fail(key, "is not a list of the right type");
  return list;
}

}  // namespace babai
