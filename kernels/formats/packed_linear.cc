#include "kernels/formats/packed_linear.h"

#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/layout_checks.h"

namespace babai {
namespace {

constexpr int64_t kRotationBytes = 16;  // block and seed

absl::Status DecodeBase(const PackedIntView& w, int64_t begin, int64_t end, float* out) {
  DecodeRows(w, begin, end, out);
  return absl::OkStatus();
}

absl::Status DecodeBase(const PackedTableView& w, int64_t begin, int64_t end, float* out) {
  DecodeRows(w, begin, end, out);
  return absl::OkStatus();
}

absl::Status DecodeBase(const EntropyCodedView& w, int64_t begin, int64_t end, float* out) {
  if (begin % kEntropyStripRows != 0 || (end % kEntropyStripRows != 0 && end != w.rows)) {
    return absl::InvalidArgumentError("rows of an entropy-coded matrix come in whole strips");
  }
  const absl::StatusOr<EntropyDecoder> decoder = EntropyDecoder::Make(w);
  if (!decoder.ok()) return decoder.status();
  for (int64_t r = begin; r < end; r += kEntropyStripRows, out += kEntropyStripRows * w.cols) {
    if (auto s = decoder->DecodeStripWeights(r / kEntropyStripRows, out); !s.ok()) return s;
  }
  return absl::OkStatus();
}

void ScaleColumns(absl::Span<const uint16_t> scales, int64_t rows, float* out) {
  std::vector<float> factors(scales.size());
  for (size_t c = 0; c < factors.size(); ++c) factors[c] = HalfToFloat(scales[c]);
  const int64_t cols = factors.size();
  for (float* row = out; row < out + rows * cols; row += cols) {
    for (int64_t c = 0; c < cols; ++c) row[c] *= factors[c];
  }
}

int64_t BaseBytes(const PackedInt& w) {
  return w.codes.size() + 2 * w.scales.size() + w.zeros.size();
}

int64_t BaseBytes(const PackedTable& w) {
  return w.codes.size() + 2 * w.scales.size() + 2 * w.table.size();
}

int64_t BaseBytes(const EntropyCoded& w) { return w.bytes(); }

int64_t RotationBytes(const Rotation& r) { return r.identity() ? 0 : kRotationBytes; }

}  // namespace

int64_t PackedLinearView::rows() const {
  return std::visit([](const auto& w) { return w.rows; }, base);
}

int64_t PackedLinearView::cols() const {
  return std::visit([](const auto& w) { return w.cols; }, base);
}

absl::StatusOr<PackedLinearView> MakePackedLinearView(const PackedLinearView& parts) {
  const int64_t rows = parts.rows(), cols = parts.cols();
  if (parts.sparse && (parts.sparse->rows != rows || parts.sparse->cols != cols)) {
    return absl::InvalidArgumentError(absl::StrCat("sparse values of ", parts.sparse->rows, " x ",
                                                   parts.sparse->cols, " beside ", rows, " x ",
                                                   cols));
  }
  if (!parts.col_scales.empty()) {
    if (std::holds_alternative<EntropyCodedView>(parts.base)) {
      return absl::InvalidArgumentError("column scales twice");
    }
    if (auto s = CheckLength("col_scales", parts.col_scales.size(), cols); !s.ok()) return s;
    if (auto s = CheckFinite("column scale", parts.col_scales); !s.ok()) return s;
  }
  if (!RotationFits(parts.in, cols) || !RotationFits(parts.out, rows)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rotation blocks ", parts.in.block, " and ", parts.out.block,
                     ": must be powers of two that divide ", cols, " and ", rows));
  }
  return parts;
}

PackedLinearView PackedLinear::view() const {
  PackedLinearView view = {
      .base = std::visit([](const auto& w) { return decltype(PackedLinearView::base)(w.view()); },
                         base),
      .col_scales = col_scales,
      .in = in,
      .out = out};
  if (sparse) view.sparse = sparse->view();
  return view;
}

int64_t PackedLinear::rows() const {
  return std::visit([](const auto& w) { return w.rows; }, base);
}

int64_t PackedLinear::cols() const {
  return std::visit([](const auto& w) { return w.cols; }, base);
}

int64_t PackedLinear::bytes() const {
  return std::visit([](const auto& w) { return BaseBytes(w); }, base) +
         (sparse ? sparse->bytes() : 0) + static_cast<int64_t>(2 * col_scales.size()) +
         RotationBytes(in) + RotationBytes(out);
}

absl::Status DecodeRows(const PackedLinearView& w, int64_t row_begin, int64_t row_end, float* out) {
  absl::Status status = std::visit(
      [&](const auto& base) { return DecodeBase(base, row_begin, row_end, out); }, w.base);
  if (!status.ok()) return status;
  if (w.sparse) AddRows(*w.sparse, row_begin, row_end, out);
  if (!w.col_scales.empty()) ScaleColumns(w.col_scales, row_end - row_begin, out);
  return absl::OkStatus();
}

absl::Status DecodeWeight(const PackedLinearView& w, float* out) {
  const int64_t rows = w.rows(), cols = w.cols();
  if (absl::Status status = DecodeRows(w, 0, rows, out); !status.ok()) return status;
  // A row v of M R_in is (R_in' v')'.
  RotateBack(w.in, out, rows, cols);
  RotateColumnsBack(w.out, out, rows, cols);
  return absl::OkStatus();
}

}  // namespace babai
