#include "server/model/tensor_reader.h"

#include <algorithm>
#include <bit>
#include <new>

#include "absl/functional/function_ref.h"
#include "server/model/refusal.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr uint64_t kChunkBytes = 1 << 20;

absl::Status NonFinite(const InputFile& file, const StoredTensor& stored) {
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kNonFiniteWeights,
                file.name() + ": tensor " + Quoted(stored.name), "holds a NaN or an infinity");
}

absl::Status OutOfMemory(const InputFile& file, const StoredTensor& stored) {
  return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory,
                file.name() + ": tensor " + Quoted(stored.name), "does not fit into memory");
}

// All exponent bits set. No early exit, so that the loop vectorizes.
bool AllFinite(const float* values, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    found |= (std::bit_cast<uint32_t>(values[i]) & 0x7f800000u) == 0x7f800000u;
  }
  return found == 0;
}

int64_t RowElements(const StoredTensor& stored) {
  return stored.shape.empty() ? 1 : stored.shape.back();
}

uint64_t RowBytes(const StoredTensor& stored) {
  return static_cast<uint64_t>(RowElements(stored) / stored.type->block_elements *
                               stored.type->block_bytes);
}

// Calls use(bytes, first row, rows) for stored rows [first, first + rows) in pieces.
absl::Status ForEachChunk(const InputFile& file, const StoredTensor& stored, int64_t first,
                          int64_t rows,
                          absl::FunctionRef<absl::Status(const uint8_t*, int64_t, int64_t)> use) {
  const uint64_t row_bytes = RowBytes(stored);
  const auto step = static_cast<int64_t>(std::max<uint64_t>(1, kChunkBytes / row_bytes));
  std::vector<char> buffer(static_cast<size_t>(std::min(step, rows)) * row_bytes);
  for (int64_t row = first; row < first + rows; row += step) {
    const int64_t count = std::min(step, first + rows - row);
    const auto bytes = absl::MakeSpan(buffer).subspan(0, static_cast<size_t>(count) * row_bytes);
    absl::Status status =
        file.ReadAt(stored.offset + static_cast<uint64_t>(row) * row_bytes, bytes);
    if (!status.ok()) return status;
    status = use(reinterpret_cast<const uint8_t*>(bytes.data()), row, count);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Rows [first_row, first_row + rows) of a tensor stored as [rows, in].
absl::Status ReadRows(const InputFile& file, const TensorBinding& binding,
                      std::vector<float>& out) {
  const StoredTensor& stored = binding.stored;
  const bool vector = binding.info.shape.size() == 1;  // one stored row, of which we take a part
  const int64_t in = vector ? 1 : RowElements(stored);
  StoredTensor rows = stored;
  if (vector) rows.shape = {stored.shape[0], 1};
  return ForEachChunk(
      file, rows, binding.first_row, binding.info.shape[0],
      [&](const uint8_t* bytes, int64_t row, int64_t count) -> absl::Status {
        float* values = out.data() + (row - binding.first_row) * in;
        stored.type->decode(bytes, count * in / stored.type->block_elements, values);
        return AllFinite(values, count * in) ? absl::OkStatus() : NonFinite(file, stored);
      });
}

// Columns [first_row, first_row + rows) of a tensor stored as [in, columns].
absl::Status ReadTransposed(const InputFile& file, const TensorBinding& binding,
                            std::vector<float>& out) {
  const StoredTensor& stored = binding.stored;
  const int64_t columns = stored.shape[1], in = stored.shape[0], rows = binding.info.shape[0];
  std::vector<float> line;
  return ForEachChunk(file, stored, 0, in,
                      [&](const uint8_t* bytes, int64_t first, int64_t count) -> absl::Status {
                        line.resize(static_cast<size_t>(count * columns));
                        stored.type->decode(bytes, count * columns, line.data());
                        if (!AllFinite(line.data(), count * columns))
                          return NonFinite(file, stored);
                        for (int64_t row = 0; row < rows; ++row) {
                          for (int64_t i = 0; i < count; ++i) {
                            out[row * in + first + i] = line[i * columns + binding.first_row + row];
                          }
                        }
                        return absl::OkStatus();
                      });
}

// Row 2i + s of each head becomes row s * head / 2 + i.
std::vector<float> HalfSplit(const std::vector<float>& values, int64_t rows, int64_t head) {
  const int64_t in = static_cast<int64_t>(values.size()) / rows;
  std::vector<float> out(values.size());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t within = row % head;
    const int64_t to = row - within + within % 2 * (head / 2) + within / 2;
    std::copy_n(values.begin() + row * in, in, out.begin() + to * in);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::vector<float>> ReadTensor(const InputFile& file, const TensorBinding& binding) {
  try {
    const std::vector<int64_t>& shape = binding.info.shape;
    std::vector<float> out(static_cast<size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1)));
    const absl::Status status =
        binding.transposed ? ReadTransposed(file, binding, out) : ReadRows(file, binding, out);
    if (!status.ok()) return status;
    if (binding.interleaved_head == 0) return out;
    return HalfSplit(out, shape[0], binding.interleaved_head);
  } catch (const std::bad_alloc&) {
    return OutOfMemory(file, binding.stored);
  }
}

absl::StatusOr<std::vector<float>> ReadStored(const InputFile& file, const StoredTensor& stored) {
  if (stored.type->decode == nullptr || stored.type->block_elements != 1) {
    return UnsupportedTensor(file.name(), stored.name,
                             "type " + std::string(stored.type->name) + " is not read here");
  }
  std::vector<char> bytes(stored.bytes);
  if (absl::Status read = file.ReadAt(stored.offset, absl::MakeSpan(bytes)); !read.ok())
    return read;
  const auto count = static_cast<int64_t>(stored.bytes) / stored.type->block_bytes;
  std::vector<float> values(static_cast<size_t>(count));
  stored.type->decode(reinterpret_cast<const uint8_t*>(bytes.data()), count, values.data());
  return values;
}

}  // namespace babai
