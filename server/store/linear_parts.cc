#include "server/store/linear_parts.h"

#include <variant>

namespace babai {
namespace {

absl::Status CheckBase(const PackedIntView& w) {
  return MakePackedIntView(w.codes, w.scales, w.zeros, w.rows, w.cols, w.group, w.bits).status();
}

absl::Status CheckBase(const PackedTableView& w) {
  return MakePackedTableView(w.codes, w.scales, w.table, w.rows, w.cols, w.group, w.bits, w.kind)
      .status();
}

absl::Status CheckBase(const EntropyCodedView& w) { return MakeEntropyCodedView(w).status(); }

void Describe(const PackedIntView& w, StoredFormat& format) {
  format.kind = StoredFormat::Kind::kPackedInt;
  format.bits = w.bits;
  format.group = w.group;
  format.symmetric = w.symmetric();
}

void Describe(const PackedTableView& w, StoredFormat& format) {
  format.kind = StoredFormat::Kind::kPackedTable;
  format.bits = w.bits;
  format.table_kind = w.kind;
  if (w.kind == TableKind::kShared) format.group = w.group;
}

void Describe(const EntropyCodedView&, StoredFormat& format) {
  format.kind = StoredFormat::Kind::kEntropyCoded;
}

// A part with so many rows, or none: a plain list.
template <class T>
LinearPart Part(std::string suffix, std::string_view type, absl::Span<const T> values,
                int64_t rows = 0) {
  LinearPart part = {std::move(suffix), type, {}, {}};
  const int64_t count = static_cast<int64_t>(values.size());
  if (rows > 0) {
    part.shape = {rows, count / rows};
  } else {
    part.shape = {count};
  }
  part.bytes = {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
  return part;
}

void AddParts(const PackedIntView& w, std::vector<LinearPart>& parts) {
  parts.push_back(Part(".codes", "U8", w.codes, w.rows));
  parts.push_back(Part(".scales", "F16", w.scales, w.rows));
  if (!w.symmetric()) parts.push_back(Part(".zeros", "U8", w.zeros, w.rows));
}

void AddParts(const PackedTableView& w, std::vector<LinearPart>& parts) {
  const bool shared = w.kind == TableKind::kShared;
  parts.push_back(Part(".codes", "U8", w.codes, w.rows));
  parts.push_back(Part(".table", "F16", w.table, shared ? 0 : w.rows));
  if (shared) parts.push_back(Part(".scales", "F16", w.scales, w.rows));
}

void AddParts(const EntropyCodedView& w, std::vector<LinearPart>& parts) {
  parts.push_back(Part(".model", "U8", w.model));
  parts.push_back(Part(".strips", "U32", w.strip_begin));
  parts.push_back(Part(".stream", "U8", w.stream));
  parts.push_back(Part(".row_scales", "F16", w.row_scales));
  parts.push_back(Part(".col_scales", "F16", w.col_scales));
}

}  // namespace

absl::Status CheckLinear(const PackedLinearView& w) {
  const auto base = std::visit([](const auto& view) { return CheckBase(view); }, w.base);
  if (!base.ok()) return base;
  if (w.sparse) {
    const SparseRowsView& s = *w.sparse;
    const auto sparse = MakeSparseRowsView(s.row_begin, s.columns, s.values, s.rows, s.cols);
    if (!sparse.ok()) return sparse.status();
  }
  return MakePackedLinearView(w).status();
}

StoredFormat FormatOf(const PackedLinearView& w) {
  StoredFormat format;
  std::visit([&](const auto& view) { Describe(view, format); }, w.base);
  format.sparse = w.sparse.has_value();
  format.col_scales = !w.col_scales.empty();
  format.rotation_in = w.in;
  format.rotation_out = w.out;
  format.shape = {w.rows(), w.cols()};
  return format;
}

std::vector<LinearPart> PartsOf(const PackedLinearView& w) {
  std::vector<LinearPart> parts;
  std::visit([&](const auto& view) { AddParts(view, parts); }, w.base);
  if (w.sparse) {
    parts.push_back(Part(".sparse_rows", "U32", w.sparse->row_begin));
    parts.push_back(Part(".sparse_columns", "U16", w.sparse->columns));
    parts.push_back(Part(".sparse_values", "F16", w.sparse->values));
  }
  if (!w.col_scales.empty()) parts.push_back(Part(".col_scales", "F16", w.col_scales));
  return parts;
}

}  // namespace babai
