#include "server/model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "server/model/limits.h"
#include "server/model/refusal.h"
#include "server/model/strict_json.h"

namespace babai {
namespace {

using Json = nlohmann::json;
static_assert(std::endian::native == std::endian::little,
              "headers and tensors are read as they lie");

constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

absl::StatusOr<std::string> ReadHeaderText(const InputFile& file) {
  uint64_t length = 0;
  if (file.size() < sizeof(length))
    return BadFile(file.name(), "is too small to be a safetensors file");
  char prefix[sizeof(length)];
  if (absl::Status read = file.ReadAt(0, absl::MakeSpan(prefix)); !read.ok()) return read;
  std::memcpy(&length, prefix, sizeof(length));
  if (length > kMaxHeaderBytes) {
    return BadFile(file.name(), "header of " + std::to_string(length) + " bytes, the limit is " +
                                    std::to_string(kMaxHeaderBytes));
  }
  if (length > file.size() - sizeof(length)) {
    return BadFile(file.name(), "header of " + std::to_string(length) + " bytes in a file of " +
                                    std::to_string(file.size()));
  }
  std::string text(length, '\0');
  if (absl::Status read = file.ReadAt(sizeof(length), absl::MakeSpan(text)); !read.ok())
    return read;
  if (text.empty() || text[0] != '{') return BadFile(file.name(), "header does not start with {");
  return text;
}

absl::Status CheckMetadata(const Json& metadata, std::string_view file) {
  if (!metadata.is_object()) return BadFile(file, "__metadata__ is not an object");
  for (const Json& value : metadata) {
    if (!value.is_string()) return BadFile(file, "__metadata__ holds something other than strings");
  }
  return absl::OkStatus();
}

absl::Status CheckName(const std::string& name, std::string_view file) {
  const bool control =
      std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20; });
  if (name.empty() || name.size() > kMaxTensorName || control) {
    return BadTensor(file, name,
                     "the name is empty, longer than " + std::to_string(kMaxTensorName) +
                         " bytes or holds a control character");
  }
  return absl::OkStatus();
}

// One entry of the header. Offsets are still relative to the end of the header.
absl::StatusOr<StoredTensor> ParseTensor(const std::string& name, const Json& entry,
                                         std::string_view file, uint64_t data_bytes) {
  if (absl::Status status = CheckName(name, file); !status.ok()) return status;
  FieldReader fields(entry, std::string(file) + ": tensor " + Quoted(name));
  StoredTensor tensor{.name = name};
  const std::string dtype = fields.String("dtype");
  for (const char* key : {"shape", "data_offsets"}) {
    if (!fields.Has(key) || !entry[key].is_array()) fields.Fail(key, "must be a list of integers");
  }
  tensor.shape = fields.IntOrInts("shape", 0, kMaxInt64);
  const std::vector<int64_t> span = fields.IntOrInts("data_offsets", 0, kMaxInt64);
  if (!fields.status().ok()) return fields.status();

  tensor.type = FindSafetensorsType(dtype);
  if (tensor.type == nullptr) return BadTensor(file, name, "unknown dtype " + Quoted(dtype));
  if (tensor.shape.size() > kMaxRank) {
    return BadTensor(file, name,
                     "rank " + std::to_string(tensor.shape.size()) + ", the limit is " +
                         std::to_string(kMaxRank));
  }
  if (span.size() != 2 || span[0] > span[1]) {
    return BadTensor(file, name, "data_offsets are not a begin and an end");
  }
  if (static_cast<uint64_t>(span[1]) > data_bytes) {
    return BadTensor(file, name,
                     "ends at byte " + std::to_string(span[1]) + " of " +
                         std::to_string(data_bytes) + " data bytes");
  }
  tensor.offset = static_cast<uint64_t>(span[0]);
  tensor.bytes = static_cast<uint64_t>(span[1] - span[0]);
  const absl::StatusOr<uint64_t> bytes = StoredBytes(*tensor.type, tensor.shape);
  if (!bytes.ok()) return BadTensor(file, name, std::string(bytes.status().message()));
  if (*bytes != tensor.bytes) {
    return BadTensor(file, name,
                     "dtype and shape take " + std::to_string(*bytes) +
                         " bytes, data_offsets give " + std::to_string(tensor.bytes));
  }
  return tensor;
}

// The tensors, laid end to end, must be the data: no hole, no overlap, no tail.
absl::Status CheckCover(const std::vector<StoredTensor>& tensors, std::string_view file,
                        uint64_t data_bytes) {
  uint64_t end = 0;
  for (const StoredTensor& tensor : tensors) {
    if (tensor.offset < end)
      return BadTensor(file, tensor.name, "its bytes overlap another tensor's");
    if (tensor.offset > end) {
      return BadTensor(
          file, tensor.name,
          "a hole of " + std::to_string(tensor.offset - end) + " bytes lies in front of it");
    }
    end = tensor.offset + tensor.bytes;
  }
  if (end == data_bytes) return absl::OkStatus();
  return BadFile(file, std::to_string(data_bytes - end) + " bytes at the end belong to no tensor");
}

}  // namespace

absl::StatusOr<std::vector<StoredTensor>> ReadSafetensorsHeader(const InputFile& file, int index) {
  const absl::StatusOr<std::string> text = ReadHeaderText(file);
  if (!text.ok()) return text.status();
  const uint64_t data_start = sizeof(uint64_t) + text->size();
  const uint64_t data_bytes = file.size() - data_start;
  const JsonLimits limits = {.depth = 8, .values = kMaxTensors * 16};
  const absl::StatusOr<Json> header = ParseJsonObject(*text, file.name(), limits);
  if (!header.ok()) return header.status();
  if (static_cast<int64_t>(header->size()) > kMaxTensors) {
    return BadFile(file.name(), "has more than " + std::to_string(kMaxTensors) + " tensors");
  }
  std::vector<StoredTensor> tensors;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") {
      if (absl::Status status = CheckMetadata(entry, file.name()); !status.ok()) return status;
      continue;
    }
    absl::StatusOr<StoredTensor> tensor = ParseTensor(name, entry, file.name(), data_bytes);
    if (!tensor.ok()) return tensor.status();
    tensors.push_back(*std::move(tensor));
  }
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  if (absl::Status status = CheckCover(tensors, file.name(), data_bytes); !status.ok())
    return status;
  for (StoredTensor& tensor : tensors) {
    tensor.file = index;
    tensor.offset += data_start;
  }
  return tensors;
}

}  // namespace babai
