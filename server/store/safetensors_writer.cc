#include "server/store/safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kDataBegin = 16384;  // whole pages; room for some hundred tensors
constexpr int64_t kLengthBytes = 8;
constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector load
constexpr int64_t kChunkBytes = 1 << 20;

int64_t AlignmentOf(int64_t bytes) {
  if (bytes == 0) return kAlignment;
  return std::min<int64_t>(kAlignment, int64_t{1} << std::countr_zero(uint64_t(bytes)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::filesystem::path& path) {
  auto file = OutputFile::Create(path);
  if (!file.ok()) return file.status();
  return std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(*std::move(file)));
}

absl::Status SafetensorsWriter::Add(std::string_view name, std::string_view dtype,
                                    const std::vector<int64_t>& shape, int64_t bytes,
                                    absl::FunctionRef<void(int64_t, absl::Span<uint8_t>)> produce) {
  tensor_bytes_ += bytes;
  Entry entry{std::string(name), std::string(dtype), shape, bytes, 0, {}};
  if (AlignmentOf(bytes) < kAlignment) {
    entry.waiting.resize(bytes);
    produce(0, absl::MakeSpan(entry.waiting));
    waiting_.push_back(std::move(entry));
    return absl::OkStatus();
  }
  entry.offset = data_end_;
  std::vector<uint8_t> chunk(std::min(bytes, kChunkBytes));
  for (int64_t at = 0; at < bytes; at += chunk.size()) {
    const auto part = absl::MakeSpan(chunk).subspan(0, std::min<int64_t>(chunk.size(), bytes - at));
    produce(at, part);
    const auto status = file_.WriteAt(kDataBegin + entry.offset + at, part);
    if (!status.ok()) return status;
  }
  data_end_ += bytes;
  placed_.push_back(std::move(entry));
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  std::stable_sort(waiting_.begin(), waiting_.end(), [](const Entry& a, const Entry& b) {
    return AlignmentOf(a.bytes) > AlignmentOf(b.bytes);
  });
  for (Entry& entry : waiting_) {
    entry.offset = data_end_;
    const auto status = file_.WriteAt(kDataBegin + data_end_, entry.waiting);
    if (!status.ok()) return status;
    data_end_ += entry.bytes;
    entry.waiting = {};
    placed_.push_back(std::move(entry));
  }
  waiting_.clear();
  if (auto status = WriteHeader(); !status.ok()) return status;
  return file_.Sync();
}

absl::Status SafetensorsWriter::WriteHeader() {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  for (const Entry& entry : placed_) {
    header[entry.name] = {{"dtype", entry.dtype},
                          {"shape", entry.shape},
                          {"data_offsets", {entry.offset, entry.offset + entry.bytes}}};
  }
  std::string text = header.dump();
  const size_t room = kDataBegin - kLengthBytes;
  if (text.size() > room) {
    return Refuse(absl::StatusCode::kInternal, reason::kInternal, "",
                  "the header of a packed file needs " + std::to_string(text.size()) +
                      " bytes and has " + std::to_string(room));
  }
  text.resize(room, ' ');
  std::vector<uint8_t> bytes(kLengthBytes);
  for (int i = 0; i < kLengthBytes; ++i) bytes[i] = static_cast<uint8_t>(uint64_t{room} >> (8 * i));
  bytes.insert(bytes.end(), text.begin(), text.end());
  return file_.WriteAt(0, bytes);
}

}  // namespace babai
