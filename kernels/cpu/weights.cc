// Making the execution layouts of matmul.h.
#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/matmul.h"

namespace babai::cpu {
namespace {

constexpr int64_t CeilDiv(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

absl::Status NoMemory(int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of weights"));
}

bool GoodGroup(const PackedIntView& w) { return w.group >= w.cols || w.group % kActGroup == 0; }

absl::Status CheckParts(absl::Span<const PackedIntView> parts) {
  if (parts.empty()) return absl::InvalidArgumentError("no weights to stack");
  const PackedIntView& a = parts[0];
  if (!GoodGroup(a)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "group ", a.group, ": the CPU kernels need a multiple of 32, or one group a row"));
  }
  for (const PackedIntView& b : parts) {
    if (b.cols != a.cols || b.group != a.group || b.bits != a.bits ||
        b.symmetric() != a.symmetric()) {
      return absl::InvalidArgumentError("stacked weights differ in cols, group, bits or symmetry");
    }
  }
  return absl::OkStatus();
}

// Walks the rows of stacked parts in order.
class StackedRows {
 public:
  explicit StackedRows(absl::Span<const PackedIntView> parts) : parts_(parts) {}
  bool done() const { return part_ == parts_.size(); }
  const PackedIntView& part() const { return parts_[part_]; }
  int64_t row() const { return row_; }
  void Next() {
    if (++row_ < part().rows) return;
    row_ = 0;
    ++part_;
  }

 private:
  absl::Span<const PackedIntView> parts_;
  size_t part_ = 0;
  int64_t row_ = 0;
};

using Lines = uint8_t[16][64];

// Codes of 16 rows (row_bytes apart), 64 columns from `codes`, as lines.
void GatherLines(const uint8_t* codes, int64_t row_bytes, Lines& lines) {
  for (int r = 0; r < kLanes; ++r) {
    for (int q = 0; q < 16; ++q) std::memcpy(&lines[q][4 * r], codes + r * row_bytes + 4 * q, 4);
  }
}

// out[i] |= bits [from, from + count) of lines[first + i], moved to bit `to`.
void PutField(const uint8_t* line, int from, int count, int to, uint8_t* out) {
  const int mask = (1 << count) - 1;
  for (int j = 0; j < 64; ++j) out[j] |= static_cast<uint8_t>(((line[j] >> from) & mask) << to);
}

void PutBlock(const Lines& lines, int bits, uint8_t* out) {
  for (int q = 0; q < 16; ++q) {
    if (bits == 8) PutField(lines[q], 0, 8, 0, out + 64 * q);
    if (bits == 4) PutField(lines[q], 0, 4, q / 8 * 4, out + 64 * (q % 8));
    if (bits <= 3) PutField(lines[q], 0, 2, q / 4 * 2, out + 64 * (q % 4));
    if (bits == 3) PutField(lines[q], 2, 1, q / 2, out + 256 + 64 * (q % 2));
  }
}

absl::Status CheckParts(absl::Span<const DenseView> parts) {
  if (parts.empty()) return absl::InvalidArgumentError("no weights to stack");
  for (const DenseView& part : parts) {
    if (part.rows < 1 || part.cols < 1 || part.data == nullptr) {
      return absl::InvalidArgumentError("dense weights without rows or columns");
    }
    if (part.cols != parts[0].cols || part.type != parts[0].type) {
      return absl::InvalidArgumentError("stacked weights differ in cols or type");
    }
  }
  return absl::OkStatus();
}

// Row `row` of a part becomes lane `lane` of a panel.
template <class T>
void ScatterRow(const DenseView& part, int64_t row, T* panel, int64_t lane) {
  const T* from = static_cast<const T*>(part.data) + row * part.cols;
  for (int64_t c = 0; c < part.cols; ++c) panel[c * kLanes + lane] = from[c];
}

template <class T>
void PackDense(absl::Span<const DenseView> parts, T* out) {
  int64_t row = 0;
  for (const DenseView& part : parts) {
    for (int64_t r = 0; r < part.rows; ++r, ++row) {
      ScatterRow(part, r, out + row / kLanes * kLanes * part.cols, row % kLanes);
    }
  }
}

}  // namespace

absl::StatusOr<PackedIntWeights> PackedIntWeights::Make(absl::Span<const PackedIntView> parts) {
  if (absl::Status status = CheckParts(parts); !status.ok()) return status;
  PackedIntWeights w;
  const PackedIntView& like = parts[0];
  for (const PackedIntView& part : parts) w.rows_ += part.rows;
  w.cols_ = like.cols;
  w.bits_ = like.bits;
  w.group_ = like.group < like.cols ? like.group : CeilDiv(like.cols, kActGroup) * kActGroup;
  const int64_t block_bytes = 128 * w.bits_;
  const int64_t meta = w.row_blocks() * w.groups() * kLanes;
  w.codes_ = AlignedBuffer::ForWeights(w.row_blocks() * w.col_blocks() * block_bytes);
  w.scales_ = AlignedBuffer::ForWeights(meta * 2);
  if (!like.symmetric()) w.zeros_ = AlignedBuffer::ForWeights(meta);
  if (w.codes_.data() == nullptr || w.scales_.data() == nullptr ||
      (!like.symmetric() && w.zeros_.data() == nullptr)) {
    return NoMemory(w.row_blocks() * w.col_blocks() * block_bytes + meta * 3);
  }
  w.Fill(parts);
  return w;
}

void PackedIntWeights::Fill(absl::Span<const PackedIntView> parts) {
  const int64_t padded_cols = col_blocks() * kBlockCols;
  std::vector<uint8_t> codes(kLanes * padded_cols);
  StackedRows rows(parts);
  for (int64_t block = 0; block < row_blocks(); ++block) {
    for (int lane = 0; lane < kLanes; ++lane) {
      uint8_t* to = &codes[lane * padded_cols];
      if (rows.done()) {
        std::fill_n(to, padded_cols, uint8_t{0});
        continue;
      }
      UnpackRow(rows.part(), rows.row(), to);
      FillMeta(rows.part(), rows.row(), block * kLanes + lane);
      rows.Next();
    }
    for (int64_t b = 0; b < col_blocks(); ++b) {
      Lines lines;
      GatherLines(&codes[b * kBlockCols], padded_cols, lines);
      PutBlock(lines, bits_, codes_.data() + (block * col_blocks() + b) * 128 * bits_);
    }
  }
}

void PackedIntWeights::FillMeta(const PackedIntView& part, int64_t from, int64_t to) {
  auto* scales = reinterpret_cast<uint16_t*>(scales_.data());
  for (int64_t g = 0; g < groups(); ++g) {
    const int64_t at = (to / kLanes * groups() + g) * kLanes + to % kLanes;
    scales[at] = part.scales[from * groups() + g];
    if (!part.symmetric()) zeros_.data()[at] = static_cast<uint8_t>(ZeroAt(part, from, g));
  }
}

absl::StatusOr<DenseWeights> DenseWeights::Make(absl::Span<const DenseView> parts) {
  if (absl::Status status = CheckParts(parts); !status.ok()) return status;
  DenseWeights w;
  for (const DenseView& part : parts) w.rows_ += part.rows;
  w.cols_ = parts[0].cols;
  w.type_ = parts[0].type;
  const int64_t bytes = w.panels() * kLanes * w.cols_ * FloatTypeBytes(w.type_);
  w.data_ = AlignedBuffer::ForWeights(bytes);
  if (w.data_.data() == nullptr) return NoMemory(bytes);
  if (w.type_ == FloatType::kF32) {
    PackDense(parts, reinterpret_cast<float*>(w.data_.data()));
  } else {
    PackDense(parts, reinterpret_cast<uint16_t*>(w.data_.data()));
  }
  return w;
}

}  // namespace babai::cpu
