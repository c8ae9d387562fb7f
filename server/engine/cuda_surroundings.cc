#include "server/engine/cuda_surroundings.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/hadamard.h"
#include "kernels/cuda/sparse_add.h"

namespace babai {
namespace {

constexpr int64_t kElement = 2;  // bytes of an activation
constexpr int64_t kFloat = sizeof(float);

template <typename T>
absl::Status Upload(absl::Span<const T> values, CudaLoader& loader, cuda::Buffer* out) {
  if (values.empty()) return absl::OkStatus();
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  absl::StatusOr<cuda::Buffer> buffer = cuda::Buffer::OnDevice(bytes);
  if (!buffer.ok()) return buffer.status();
  *out = *std::move(buffer);
  return loader.Copy(values.data(), bytes, out->data());
}

absl::Status UploadScales(const Rotation& rotation, int64_t width, CudaLoader& loader,
                          cuda::Buffer* out) {
  if (rotation.identity()) return absl::OkStatus();
  return Upload<float>(RotationScales(rotation, width), loader, out);
}

// Compressed rows of a whole stack.
struct Stack {
  std::vector<int32_t> row_begin{0};
  std::vector<uint16_t> columns;
  std::vector<float> values;

  void Add(const cpu::SparseWeights& s, int64_t rows) {
    const auto before = static_cast<int32_t>(columns.size());
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t end = s.empty() ? 0 : s.row_begin()[r + 1];
      row_begin.push_back(static_cast<int32_t>(before + end));
    }
    columns.insert(columns.end(), s.columns(), s.columns() + s.entries());
    values.insert(values.end(), s.values(), s.values() + s.entries());
  }
};

}  // namespace

int64_t CudaScratch::TurnedBytes(const Needs& needs, int64_t tokens) {
  return needs.turned_cols * tokens * kElement;
}

int64_t CudaScratch::TransposedBytes(const Needs& needs, int64_t tokens) {
  return needs.transposed_cols == 0 ? 0 : cuda::TransposedBytes(tokens, needs.transposed_cols);
}

absl::StatusOr<CudaSurroundings> CudaSurroundings::Load(const Parts& parts, CudaLoader& loader) {
  CudaSurroundings made;
  int64_t entries = 0;
  for (size_t i = 0; i < parts.rows.size(); ++i) {
    made.rows_ += parts.rows[i], entries += parts.sparse[i]->entries();
  }
  if (entries > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("too many sparse values: ", entries));
  }
  made.cols_ = parts.cols;
  made.in_block_ = parts.in.block, made.out_block_ = parts.out.block;
  Stack stack;
  if (entries > 0) {
    for (size_t i = 0; i < parts.rows.size(); ++i) stack.Add(*parts.sparse[i], parts.rows[i]);
    absl::Status sent = Upload<int32_t>(stack.row_begin, loader, &made.row_begin_);
    if (sent.ok()) sent = Upload<uint16_t>(stack.columns, loader, &made.columns_);
    if (sent.ok()) sent = Upload<float>(stack.values, loader, &made.values_);
    if (!sent.ok()) return sent;
  }
  absl::Status sent = UploadScales(parts.in, parts.cols, loader, &made.in_scales_);
  if (sent.ok()) sent = UploadScales(parts.out, made.rows_, loader, &made.out_scales_);
  if (sent.ok()) sent = Upload<float>(parts.factors, loader, &made.factors_);
  if (!sent.ok()) return sent;
  return made;
}

bool CudaSurroundings::Takes(const Rotation& in, const Rotation& out, int64_t rows, int64_t cols) {
  const auto fits = [](const Rotation& r, int64_t width) {
    return r.block <= cuda::kMostHadamardBlock && width % cuda::kHadamardUnit == 0;
  };
  return fits(in, cols) && (out.identity() || fits(out, rows));
}

int64_t CudaSurroundings::Bytes(const Rotation& in, const Rotation& out, bool factors,
                                int64_t sparse_entries, int64_t rows, int64_t cols) {
  int64_t bytes = (factors ? cols : 0) + (in.identity() ? 0 : cols) + (out.identity() ? 0 : rows);
  bytes *= kFloat;
  if (sparse_entries == 0) return bytes;
  constexpr int64_t kEntry = sizeof(uint16_t) + sizeof(float);
  return bytes + (rows + 1) * static_cast<int64_t>(sizeof(int32_t)) + sparse_entries * kEntry;
}

int64_t CudaSurroundings::bytes() const {
  return in_scales_.bytes() + factors_.bytes() + out_scales_.bytes() + row_begin_.bytes() +
         columns_.bytes() + values_.bytes();
}

CudaScratch::Needs CudaSurroundings::needs() const {
  const bool turns = in_scales_.bytes() + factors_.bytes() > 0;
  return {turns ? cols_ : 0, values_.bytes() > 0 ? cols_ : 0};
}

absl::StatusOr<const void*> CudaSurroundings::Before(const void* x, int m, cuda::Dtype dtype,
                                                     const CudaScratch& scratch,
                                                     const cuda::Queue& queue) const {
  if (needs().turned_cols == 0) return x;
  cuda::HadamardArgs args{};
  args.x = x, args.y = scratch.turned.data();
  args.before = in_scales_.data<float>(), args.after = factors_.data<float>();
  args.rows = m, args.width = static_cast<int>(cols_), args.block = static_cast<int>(in_block_);
  args.dtype = dtype;
  const absl::Status turned = cuda::FromCuda(cuda::Hadamard(args, queue), "Hadamard");
  if (!turned.ok()) return turned;
  return args.y;
}

absl::Status CudaSurroundings::After(const void* x, void* y, int m, cuda::Dtype dtype,
                                     const CudaScratch& scratch, const cuda::Queue& queue) const {
  if (values_.bytes() > 0) {
    cuda::SparseAddArgs args{};
    args.x = x, args.transposed = scratch.transposed.data(), args.y = y;
    args.s = {row_begin_.data<int32_t>(), columns_.data<uint16_t>(), values_.data<float>()};
    args.m = m, args.n = static_cast<int>(rows_), args.k = static_cast<int>(cols_);
    args.dtype = dtype;
    const absl::Status added = cuda::FromCuda(cuda::SparseAdd(args, queue), "SparseAdd");
    if (!added.ok()) return added;
  }
  if (out_scales_.bytes() == 0) return absl::OkStatus();
  cuda::HadamardArgs args{};
  args.x = y, args.y = y, args.after = out_scales_.data<float>();
  args.rows = m, args.width = static_cast<int>(rows_), args.block = static_cast<int>(out_block_);
  args.dtype = dtype;
  return cuda::FromCuda(cuda::Hadamard(args, queue), "Hadamard");
}

}  // namespace babai
