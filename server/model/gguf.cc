#include "server/model/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "server/model/gguf_cursor.h"
#include "server/model/limits.h"
#include "server/model/refusal.h"

namespace babai {
namespace {

constexpr uint64_t kMaxKeys = 65536;
constexpr uint64_t kMaxKeyBytes = 65535;        // the format's own limit
constexpr uint64_t kMaxStringBytes = 16 << 20;  // a chat template, an embedded tokenizer.json
constexpr uint64_t kMaxArrayItems = 8 << 20;    // merges of a 2^20 vocabulary
constexpr uint64_t kMaxMetadataBytes = 512 << 20;
constexpr uint32_t kMaxGgufRank = 4;
constexpr int64_t kMaxAlignment = 64 << 10;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kValueTypes
};

bool IsFloat(uint32_t type) { return type == kF32 || type == kF64; }

double ReadFloat(GgufCursor& in, uint32_t type) {
  return type == kF32 ? double{in.Scalar<float>()} : in.Scalar<double>();
}

int64_t ReadInt(GgufCursor& in, uint32_t type) {
  switch (type) {
    case kU8:
      return in.Scalar<uint8_t>();
    case kI8:
      return in.Scalar<int8_t>();
    case kBool:
      return in.Scalar<uint8_t>();
    case kU16:
      return in.Scalar<uint16_t>();
    case kI16:
      return in.Scalar<int16_t>();
    case kU32:
      return in.Scalar<uint32_t>();
    case kI32:
      return in.Scalar<int32_t>();
    case kI64:
      return in.Scalar<int64_t>();
    default:
      break;
  }
  const auto value = in.Scalar<uint64_t>();
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    in.Fail("the integer " + std::to_string(value));
    return 0;
  }
  return static_cast<int64_t>(value);
}

uint64_t SmallestItemBytes(uint32_t type) {
  constexpr uint64_t kBytes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};
  return kBytes[type];
}

// Grows item by item: each one has consumed bytes of the file before the next is made.
template <typename T, typename Read>
std::vector<T> ReadItems(GgufCursor& in, uint64_t count, Read read) {
  std::vector<T> items;
  for (uint64_t i = 0; i < count && in.ok(); ++i) items.push_back(read());
  return items;
}

GgufValue ReadArray(GgufCursor& in) {
  const auto type = in.Scalar<uint32_t>();
  const auto count = in.Scalar<uint64_t>();
  if (!in.ok()) return {};
  if (type >= kValueTypes || type == kArray) {
    in.Fail("an array of value type " + std::to_string(type));
    return {};
  }
  if (count > kMaxArrayItems || count > in.remaining() / SmallestItemBytes(type)) {
    in.Fail("an array of " + std::to_string(count) + " items");
    return {};
  }
  if (type == kString) {
    return ReadItems<std::string>(in, count, [&] { return in.String(kMaxStringBytes); });
  }
  if (IsFloat(type)) return ReadItems<double>(in, count, [&] { return ReadFloat(in, type); });
  return ReadItems<int64_t>(in, count, [&] { return ReadInt(in, type); });
}

GgufValue ReadValue(GgufCursor& in) {
  const auto type = in.Scalar<uint32_t>();
  if (type >= kValueTypes) {
    in.Fail("value type " + std::to_string(type));
    return {};
  }
  if (type == kString) return in.String(kMaxStringBytes);
  if (type == kArray) return ReadArray(in);
  if (type == kBool) return in.Scalar<uint8_t>() != 0;
  if (IsFloat(type)) return ReadFloat(in, type);
  return ReadInt(in, type);
}

void ReadMetadata(GgufCursor& in, uint64_t count, GgufHeader& header) {
  for (uint64_t i = 0; i < count && in.ok(); ++i) {
    std::string key = in.String(kMaxKeyBytes);
    GgufValue value = ReadValue(in);
    if (in.position() > kMaxMetadataBytes) in.Fail("more than 512 MiB of metadata");
    if (!in.ok()) return;
    if (!header.metadata.emplace(key, std::move(value)).second) {
      in.Fail("the key " + Quoted(key) + " twice");
    }
  }
}

// Offsets are still relative to the data section.
StoredTensor ReadTensor(GgufCursor& in, std::string_view file) {
  StoredTensor tensor{.name = in.String(kMaxTensorName)};
  const auto rank = in.Scalar<uint32_t>();
  if (!in.ok()) return {};
  if (rank == 0 || rank > kMaxGgufRank) {
    in.Fail(BadTensor(file, tensor.name, "rank " + std::to_string(rank) + " is not in [1, 4]"));
    return {};
  }
  for (uint32_t i = 0; i < rank; ++i) tensor.shape.push_back(ReadInt(in, kU64));
  std::reverse(tensor.shape.begin(), tensor.shape.end());  // the file has the fastest first
  const auto type = in.Scalar<uint32_t>();
  tensor.offset = in.Scalar<uint64_t>();
  if (!in.ok()) return {};
  tensor.type = FindGgmlType(type);
  if (tensor.type == nullptr) {
    in.Fail(
        UnsupportedTensor(file, tensor.name, "ggml type " + std::to_string(type) + " is unknown"));
    return {};
  }
  const absl::StatusOr<uint64_t> bytes = StoredBytes(*tensor.type, tensor.shape);
  if (!bytes.ok()) in.Fail(BadTensor(file, tensor.name, std::string(bytes.status().message())));
  tensor.bytes = bytes.value_or(0);
  return tensor;
}

void ReadTensors(GgufCursor& in, uint64_t count, std::string_view file, GgufHeader& header) {
  std::set<std::string> names;
  for (uint64_t i = 0; i < count && in.ok(); ++i) {
    StoredTensor tensor = ReadTensor(in, file);
    if (!in.ok()) return;
    if (!names.insert(tensor.name).second) {
      in.Fail(BadTensor(file, tensor.name, "is there twice"));
    }
    header.tensors.push_back(std::move(tensor));
  }
}

// Makes offsets absolute and proves that every tensor lies in the file, alone.
absl::Status PlaceTensors(const InputFile& file, uint64_t header_end, uint64_t alignment, int index,
                          std::vector<StoredTensor>& tensors) {
  const uint64_t data_start = (header_end + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = file.size() > data_start ? file.size() - data_start : 0;
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  uint64_t end = 0;
  for (StoredTensor& tensor : tensors) {
    const auto bad = [&](std::string_view why) { return BadTensor(file.name(), tensor.name, why); };
    if (tensor.offset % alignment != 0) {
      return bad("offset " + std::to_string(tensor.offset) + " is no multiple of the alignment " +
                 std::to_string(alignment));
    }
    if (tensor.offset > data_bytes || tensor.bytes > data_bytes - tensor.offset) {
      return bad(std::to_string(tensor.bytes) + " bytes at offset " +
                 std::to_string(tensor.offset) + " do not fit into " + std::to_string(data_bytes) +
                 " data bytes");
    }
    if (tensor.offset < end) return bad("its bytes overlap another tensor's");
    end = tensor.offset + tensor.bytes;
    tensor.offset += data_start;
    tensor.file = index;
  }
  return absl::OkStatus();
}

absl::Status ReadPrelude(GgufCursor& in, std::string_view file) {
  constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
  const auto magic = in.Scalar<uint32_t>();
  const auto version = in.Scalar<uint32_t>();
  if (!in.ok()) return in.status();
  if (magic != kMagic) return BadFile(file, "does not start with GGUF");
  if (version == 2 || version == 3) return absl::OkStatus();
  if (version == 0x02000000 || version == 0x03000000) {
    return UnsupportedFile(file, "is big-endian; convert it to little-endian");
  }
  return UnsupportedFile(
      file, "is GGUF version " + std::to_string(version) + "; versions 2 and 3 are read");
}

}  // namespace

absl::StatusOr<GgufHeader> ReadGgufHeader(const InputFile& file, int index) {
  GgufCursor in(file);
  if (absl::Status status = ReadPrelude(in, file.name()); !status.ok()) return status;
  constexpr uint64_t kTensorBytes = 8 + 4 + 8 + 4 + 8, kPairBytes = 8 + 4 + 1;  // at least
  const auto tensors = in.Scalar<uint64_t>();
  const auto pairs = in.Scalar<uint64_t>();
  if (tensors > kMaxTensors || tensors > in.remaining() / kTensorBytes) {
    in.Fail(std::to_string(tensors) + " tensors");
  }
  if (pairs > kMaxKeys || pairs > in.remaining() / kPairBytes)
    in.Fail(std::to_string(pairs) + " keys");

  GgufHeader header;
  ReadMetadata(in, pairs, header);
  ReadTensors(in, tensors, file.name(), header);
  if (!in.ok()) return in.status();

  GgufFields fields(header, file.name());
  const int64_t alignment = fields.Int("general.alignment", 1, kMaxAlignment, 32);
  if (!std::has_single_bit(static_cast<uint64_t>(alignment))) {
    fields.Fail("general.alignment", "is no power of two");
  }
  if (!fields.status().ok()) return fields.status();
  absl::Status placed = PlaceTensors(file, in.position(), alignment, index, header.tensors);
  if (!placed.ok()) return placed;
  return header;
}

void GgufFields::Fail(std::string_view key, std::string_view message) {
  if (status_.ok()) status_ = BadFile(file_, std::string(key) + ' ' + std::string(message));
}

const GgufValue* GgufFields::Get(std::string_view key, bool required) {
  const auto found = header_.metadata.find(key);
  if (found != header_.metadata.end()) return &found->second;
  if (required) Fail(key, "is missing");
  return nullptr;
}

bool GgufFields::IsList(std::string_view key) const {
  const auto found = header_.metadata.find(key);
  return found != header_.metadata.end() &&
         std::holds_alternative<std::vector<int64_t>>(found->second);
}

int64_t GgufFields::Int(std::string_view key, int64_t low, int64_t high,
                        std::optional<int64_t> fallback) {
  const GgufValue* value = Get(key, !fallback);
  if (value == nullptr) return fallback.value_or(low);
  const auto* number = std::get_if<int64_t>(value);
  if (number != nullptr && *number >= low && *number <= high) return *number;
  Fail(key, "must be an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]");
  return low;
}

double GgufFields::Number(std::string_view key, double low, double high,
                          std::optional<double> fallback) {
  const GgufValue* value = Get(key, !fallback);
  if (value == nullptr) return fallback.value_or(low);
  const auto* number = std::get_if<double>(value);
  if (number != nullptr && std::isfinite(*number) && *number >= low && *number <= high)
    return *number;
  Fail(key, "must be a number in [" + std::to_string(low) + ", " + std::to_string(high) + "]");
  return low;
}

bool GgufFields::Bool(std::string_view key, bool fallback) {
  const GgufValue* value = Get(key, false);
  if (value == nullptr) return fallback;
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  Fail(key, "must be a bool");
  return fallback;
}

std::string GgufFields::String(std::string_view key, std::optional<std::string> fallback) {
  const GgufValue* value = Get(key, !fallback);
  if (value == nullptr) return fallback.value_or(std::string());
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  Fail(key, "must be a string");
  return {};
}

}  // namespace babai
