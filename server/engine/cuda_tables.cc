#include "server/engine/cuda_tables.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "kernels/formats/float16.h"

namespace babai {
namespace {

constexpr int kBits = 4;  // of a code on the device
constexpr int64_t kElement = 2;

// Columns that share a scale; 0: all.
int64_t GroupOf(const PackedTableView& w) {
  return w.kind == TableKind::kShared && w.group < w.cols ? w.group : 0;
}

}  // namespace

std::optional<cuda::PackedShape> TableShapeOf(const PackedTableView& w) {
  const int64_t group = GroupOf(w);
  const bool known = group == 0 || group == 32 || group == 64 || group == 128;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (!known || w.cols % 32 != 0 || w.rows > kMost || w.cols > kMost) return std::nullopt;
  return cuda::TableShape(static_cast<int>(w.rows), static_cast<int>(w.cols),
                          static_cast<int>(group));
}

absl::StatusOr<TableCodes> MakeTableCodes(const PackedTableView& w) {
  if (!TableShapeOf(w)) return absl::InternalError("tables without a kernel");
  TableCodes made;
  const int64_t row_bytes = w.cols / 2;
  made.codes.resize(w.rows * row_bytes);
  made.tables.resize(w.rows * cuda::kTableValues);
  std::vector<uint8_t> pairs(row_bytes), codes(w.cols);
  for (int64_t r = 0; r < w.rows; ++r) {
    if (w.bits == kBits) {  // two codes are a byte as they are stored
      std::copy_n(&w.codes[r * row_bytes], row_bytes, pairs.begin());
    } else {
      UnpackRow(w, r, codes.data());
      for (int64_t i = 0; i < row_bytes; ++i) {
        pairs[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << kBits);
      }
    }
    constexpr int kUnit = cuda::kTableUnit / 2;
    for (int64_t at = 0; at < row_bytes; at += kUnit) {
      uint8_t* const to = &made.codes[r * row_bytes + at];
      for (int i = 0; i < kUnit; ++i) to[cuda::PlaceOfTablePair(i)] = pairs[at + i];
    }
    uint16_t* const table = &made.tables[r * cuda::kTableValues];
    if (w.kind == TableKind::kShared) {
      std::copy(w.table.begin(), w.table.end(), table);
      continue;
    }
    std::array<float, cuda::kTableValues> values{};
    TableValues(w, r, 0, values.data());
    for (int i = 0; i < 1 << w.bits; ++i) table[i] = FloatToHalf(values[i]);
  }
  made.pairs.rows = w.rows, made.pairs.cols = row_bytes, made.pairs.bits = 2 * kBits;
  made.pairs.group = GroupOf(w) == 0 ? row_bytes : w.group / 2;
  if (w.kind != TableKind::kShared) made.ones.assign(w.rows, FloatToHalf(1));
  made.pairs.codes = made.codes;
  made.pairs.scales =
      w.kind == TableKind::kShared ? w.scales : absl::Span<const uint16_t>(made.ones);
  return made;
}

namespace {

absl::Status InPasses(const TableProductArgs& args, int64_t k, const cuda::Queue& queue) {
  for (int done = 0; done < args.m; done += cuda::kTableTokens) {
    const auto* x = static_cast<const uint16_t*>(args.x) + done * k;
    auto* y = static_cast<uint16_t*>(args.y) + int64_t{done} * args.weights.shape.n;
    const int m = std::min(cuda::kTableTokens, args.m - done);
    const absl::Status pass =
        cuda::FromCuda(cuda::TableGemm({x, y, args.weights, m, args.dtype}, queue), "TableGemm");
    if (!pass.ok()) return pass;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TableProduct(const TableProductArgs& args, cuda::DenseGemm* dense,
                          const cuda::Buffer& decoded, const cuda::Queue& queue) {
  const cuda::PackedShape& shape = args.weights.shape;
  const int k = shape.k * 2;
  if (args.m <= kTablePassTokens) return InPasses(args, k, queue);
  const int64_t room = decoded.bytes() / (k * kElement) / cuda::kStripRows * cuda::kStripRows;
  if (room == 0) return absl::InvalidArgumentError("a row is too long to be decoded");
  for (int64_t first = 0; first < shape.n; first += room) {
    const int rows = static_cast<int>(std::min<int64_t>(room, shape.n - first));
    const absl::Status done = cuda::FromCuda(
        cuda::TableDecode({args.weights, static_cast<int>(first), rows, decoded.data(), args.dtype},
                          queue),
        "TableDecode");
    if (!done.ok()) return done;
    const absl::Status product =
        dense->Run({args.x, decoded.data(), static_cast<uint16_t*>(args.y) + first, args.m, rows, k,
                    args.dtype, shape.n});
    if (!product.ok()) return product;
  }
  return absl::OkStatus();
}

}  // namespace babai
