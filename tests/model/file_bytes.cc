// The file formats, as their specifications spell them.
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "kernels/formats/float16.h"
#include "tests/model/checkpoint_builder.h"

namespace babai {
namespace {

template <typename T>
std::string RawBytes(T value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

std::string Text(std::string_view text) {
  return RawBytes<uint64_t>(text.size()) + std::string(text);
}

std::string ValueBytes(const std::vector<float>& values, DType dtype) {
  std::string bytes;
  for (const float value : values) {
    if (dtype == DType::kF16) bytes += RawBytes(FloatToHalf(value));
    if (dtype == DType::kBF16) bytes += RawBytes(FloatToBf16(value));
    if (dtype == DType::kF32) bytes += RawBytes(value);
  }
  return bytes;
}

void PadTo(size_t alignment, std::string& bytes) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment, '\0');
}

}  // namespace

void WriteFile(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) throw std::runtime_error("can not write " + path.string());
}

std::string SafetensorsFile(std::string_view header, std::string_view data) {
  return RawBytes<uint64_t>(header.size()) + std::string(header) + std::string(data);
}

std::string SafetensorsBytes(const std::vector<NewTensor>& tensors, DType dtype) {
  const char* name = dtype == DType::kF32 ? "F32" : dtype == DType::kF16 ? "F16" : "BF16";
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const NewTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += ValueBytes(tensor.values, dtype);
    header[tensor.name] = {
        {"dtype", name}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return SafetensorsFile(text, data);
}

void GgufBuilder::Raw(std::string_view key, uint32_t value_type, std::string_view bytes) {
  metadata_ += Text(key) + RawBytes(value_type) + std::string(bytes);
  ++pairs_;
}

void GgufBuilder::Uint32(std::string_view key, uint32_t value) { Raw(key, 4, RawBytes(value)); }
void GgufBuilder::Float32(std::string_view key, float value) { Raw(key, 6, RawBytes(value)); }
void GgufBuilder::Bool(std::string_view key, bool value) { Raw(key, 7, RawBytes<uint8_t>(value)); }
void GgufBuilder::String(std::string_view key, std::string_view value) { Raw(key, 8, Text(value)); }

void GgufBuilder::Strings(std::string_view key, const std::vector<std::string>& values) {
  std::string bytes = RawBytes<uint32_t>(8) + RawBytes<uint64_t>(values.size());
  for (const std::string& value : values) bytes += Text(value);
  Raw(key, 9, bytes);
}

void GgufBuilder::Int32s(std::string_view key, const std::vector<int32_t>& values) {
  std::string bytes = RawBytes<uint32_t>(5) + RawBytes<uint64_t>(values.size());
  for (const int32_t value : values) bytes += RawBytes(value);
  Raw(key, 9, bytes);
}

void GgufBuilder::Tensor(std::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                         std::string_view bytes) {
  tensors_.push_back({std::string(name), shape, type, std::string(bytes)});
}

void GgufBuilder::TensorF32(const NewTensor& tensor) {
  Tensor(tensor.name, tensor.shape, 0, ValueBytes(tensor.values, DType::kF32));
}

std::string GgufBuilder::Bytes(const Lies& lies) const {
  constexpr size_t kAlignment = 32;
  const auto truth_or = [](int64_t lie, uint64_t truth) {
    return lie < 0 ? truth : static_cast<uint64_t>(lie);
  };
  std::string file = "GGUF" + RawBytes(static_cast<uint32_t>(truth_or(lies.version, 3)));
  file += RawBytes(truth_or(lies.tensors, tensors_.size()));
  file += RawBytes(truth_or(lies.pairs, pairs_)) + metadata_;
  std::string data;
  for (const Entry& tensor : tensors_) {
    PadTo(kAlignment, data);
    file += Text(tensor.name) + RawBytes(static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) {
      file += RawBytes(static_cast<uint64_t>(tensor.shape[i]));
    }
    file += RawBytes(tensor.type) + RawBytes<uint64_t>(data.size() + lies.offset_shift);
    data += tensor.bytes;
  }
  PadTo(kAlignment, file);
  return file + data;
}

}  // namespace babai
