#include "server/engine/linear_layout.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/formats/float16.h"

namespace babai {
namespace {

constexpr int64_t kPanelRows = 16;  // rows of an execution layout are padded to this
constexpr int64_t kKernelGroup = 32;

constexpr int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int Zero(int bits) { return 1 << (bits - 1); }

bool Fits(int64_t value, int bits) { return value >= -Zero(bits) && value < Zero(bits); }

// --- F2 as integers ---

// A table as integers times a power of two.
struct IntegerTable {
  std::vector<int> values;  // by code
  float unit = 1;
  int bits = 0;
};

// Exponent of the lowest set bit of a finite fp16 value that is not 0.
int LowestBit(float value) {
  int exponent = 0;
  const float fraction = std::frexp(value, &exponent);  // of 11 significant bits
  const auto integer = static_cast<uint32_t>(std::ldexp(std::abs(fraction), 11));
  return exponent - 11 + std::countr_zero(integer);
}

std::optional<IntegerTable> ToIntegers(absl::Span<const uint16_t> halves) {
  int lowest = 64;
  for (const uint16_t h : halves) {
    const float value = HalfToFloat(h);
    if (value != 0) lowest = std::min(lowest, LowestBit(value));
  }
  if (lowest == 64) return std::nullopt;  // nothing but zeros
  IntegerTable table;
  table.unit = std::ldexp(1.0f, lowest);
  table.bits = 4;
  for (const uint16_t h : halves) {
    const float value = std::ldexp(HalfToFloat(h), -lowest);
    if (std::abs(value) > 1000) return std::nullopt;
    table.values.push_back(static_cast<int>(value));
    if (!Fits(table.values.back(), 4)) table.bits = 8;
    if (!Fits(table.values.back(), 8)) return std::nullopt;
  }
  return table;
}

// The scale that an integer then has; nothing where fp16 can not hold it.
std::optional<uint16_t> TimesUnit(uint16_t scale, float unit) {
  const float product = HalfToFloat(scale) * unit;
  const uint16_t half = FloatToHalf(product);
  if (HalfToFloat(half) != product) return std::nullopt;
  return half;
}

std::optional<IntegerTable> ExactIntegers(const PackedTableView& w) {
  if (w.kind != TableKind::kShared) return std::nullopt;
  if (w.group < w.cols && w.group % kKernelGroup != 0) return std::nullopt;
  std::optional<IntegerTable> table = ToIntegers(w.table);
  if (!table) return std::nullopt;
  const bool exact = std::all_of(w.scales.begin(), w.scales.end(), [&](uint16_t scale) {
    return TimesUnit(scale, table->unit).has_value();
  });
  return exact ? table : std::nullopt;
}

absl::StatusOr<PackedInt> IntegersOf(const PackedTableView& w) {
  const std::optional<IntegerTable> table = ExactIntegers(w);
  if (!table) return absl::InternalError("the table has no integers");
  std::vector<uint8_t> codes(w.rows * w.cols);
  for (int64_t r = 0; r < w.rows; ++r) {
    uint8_t* row = &codes[r * w.cols];
    UnpackRow(w, r, row);
    for (int64_t c = 0; c < w.cols; ++c) {
      row[c] = static_cast<uint8_t>(table->values[row[c]] + Zero(table->bits));
    }
  }
  std::vector<uint16_t> scales;
  for (const uint16_t scale : w.scales) scales.push_back(*TimesUnit(scale, table->unit));
  return PackInt(codes, scales, {}, w.rows, w.cols, w.group, table->bits);
}

// --- F6 as integers ---

constexpr int64_t kFewOutside = 200;  // 1 in so many may be sparse

absl::StatusOr<LinearLayout> EntropyLayout(const EntropyCodedView& w) {
  const absl::StatusOr<EntropyDecoder> decoder = EntropyDecoder::Make(w);
  if (!decoder.ok()) return decoder.status();
  LinearLayout layout;
  layout.group = w.cols;
  layout.bits = 4;
  layout.sparse_entries = decoder->ExpectedOutside(-Zero(4), Zero(4) - 1);
  if (layout.sparse_entries <= w.rows * w.cols / kFewOutside) return layout;
  layout.bits = 8;
  layout.sparse_entries = decoder->ExpectedOutside(-Zero(8), Zero(8) - 1);
  return layout;
}

// Factors of the columns: their scales. A column of scale 0 keeps its inputs, which sparse values
// may need, and has integers of 0 instead.
std::vector<float> EntropyFactors(const EntropyCodedView& w) {
  std::vector<float> factors;
  for (const uint16_t scale : w.col_scales) {
    factors.push_back(HalfToFloat(scale) == 0 ? 1.0f : HalfToFloat(scale));
  }
  return factors;
}

// Splits decoded rows into integers that fit and sparse values: the rest of those that do not, and
// the linear's own. These are in front of the column scales, hence divided by them.
class EntropySplitter {
 public:
  EntropySplitter(const EntropyDecoder& decoder, const EntropyCodedView& w,
                  const std::optional<SparseRowsView>& own, IntegerLinear& out)
      : decoder_(decoder),
        w_(w),
        own_(own),
        bits_(out.owned.bits),
        row_bytes_(PackedIntCodeBytes(1, w.cols, bits_)),
        out_(out),
        z_(kEntropyStripRows * w.cols),
        codes_(z_.size()),
        dead_(w.cols) {
    for (int64_t c = 0; c < w.cols; ++c) dead_[c] = HalfToFloat(w.col_scales[c]) == 0 ? 1 : 0;
  }

  // Writes the strip's integers and adds its rows to `sparse`. Different strips at the same time
  // need splitters of their own.
  absl::Status AddStrip(int64_t strip, cpu::SparseWeights& sparse) {
    const int64_t first = strip * kEntropyStripRows;
    const int64_t rows = std::min(kEntropyStripRows, w_.rows - first);
    if (absl::Status decoded = decoder_.DecodeStrip(strip, z_.data()); !decoded.ok()) {
      return decoded;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const absl::Status added = AddRow(first + r, &z_[r * w_.cols], &codes_[r * w_.cols], sparse);
      if (!added.ok()) return added;
    }
    const absl::StatusOr<PackedInt> packed =
        PackInt(absl::MakeSpan(codes_).subspan(0, rows * w_.cols),
                w_.row_scales.subspan(first, rows), {}, rows, w_.cols, w_.cols, bits_);
    if (!packed.ok()) return packed.status();
    std::copy(packed->codes.begin(), packed->codes.end(), &out_.owned.codes[first * row_bytes_]);
    return absl::OkStatus();
  }

 private:
  absl::Status AddRow(int64_t row, const int32_t* z, uint8_t* codes, cpu::SparseWeights& sparse) {
    const float scale = HalfToFloat(w_.row_scales[row]);
    uint32_t next = own_ ? own_->row_begin[row] : 0;
    const uint32_t end = own_ ? own_->row_begin[row + 1] : 0;
    for (int64_t c = 0; c < w_.cols; ++c) {
      const int32_t value = dead_[c] != 0 ? 0 : z[c];
      const int32_t kept = std::clamp(value, -Zero(bits_), Zero(bits_) - 1);
      codes[c] = static_cast<uint8_t>(kept + Zero(bits_));
      float rest = scale * static_cast<float>(value - kept);
      if (next < end && own_->columns[next] == c) {
        rest += HalfToFloat(own_->values[next++]) / out_.col_factors[c];
      }
      if (rest == 0) continue;
      if (c >= cpu::SparseWeights::kMostCols) {
        return absl::InvalidArgumentError("integers beyond 8 bits in more than 65536 columns");
      }
      sparse.Add(c, rest);
    }
    sparse.EndRow();
    return absl::OkStatus();
  }

  const EntropyDecoder& decoder_;
  const EntropyCodedView& w_;
  const std::optional<SparseRowsView>& own_;
  const int bits_;
  const int64_t row_bytes_;
  IntegerLinear& out_;
  std::vector<int32_t> z_;      // of a strip
  std::vector<uint8_t> codes_;  // likewise, one a byte
  std::vector<uint8_t> dead_;   // by column: its scale is 0
};

// Decoding costs more than reading, and strips stand alone: on threads of its own.
absl::Status SplitEntropy(const EntropyCodedView& w, const std::optional<SparseRowsView>& own,
                          int bits, IntegerLinear& out) {
  const absl::StatusOr<EntropyDecoder> decoder = EntropyDecoder::Make(w);
  if (!decoder.ok()) return decoder.status();
  out.col_factors = EntropyFactors(w);
  out.owned.codes.resize(PackedIntCodeBytes(w.rows, w.cols, bits));
  out.owned.scales.assign(w.row_scales.begin(), w.row_scales.end());
  out.owned.rows = w.rows, out.owned.cols = out.owned.group = w.cols, out.owned.bits = bits;
  const int64_t strips = (w.rows + kEntropyStripRows - 1) / kEntropyStripRows;
  const int64_t count = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, strips);
  std::vector<cpu::SparseWeights> sparse(count, cpu::SparseWeights(w.cols));
  std::vector<absl::Status> done(count);
  {
    std::vector<std::jthread> threads;
    for (int64_t i = 0; i < count; ++i) {
      threads.emplace_back([&, i] {
        EntropySplitter splitter(*decoder, w, own, out);
        for (int64_t s = strips * i / count; s < strips * (i + 1) / count && done[i].ok(); ++s) {
          done[i] = splitter.AddStrip(s, sparse[i]);
        }
      });
    }
  }
  out.sparse = cpu::SparseWeights(w.cols);
  for (int64_t i = 0; i < count; ++i) {
    if (!done[i].ok()) return done[i];
    out.sparse.Append(sparse[i]);
  }
  return absl::OkStatus();
}

}  // namespace

cpu::SparseWeights SparseOf(const SparseRowsView& s) {
  cpu::SparseWeights sparse(s.cols);
  for (int64_t r = 0; r < s.rows; ++r) {
    for (uint32_t i = s.row_begin[r]; i < s.row_begin[r + 1]; ++i) {
      sparse.Add(s.columns[i], HalfToFloat(s.values[i]));
    }
    sparse.EndRow();
  }
  return sparse;
}

absl::StatusOr<LinearLayout> LayoutOf(const PackedLinearView& w) {
  LinearLayout layout;
  if (const auto* ints = std::get_if<PackedIntView>(&w.base)) {
    layout = {false, ints->bits, ints->group, ints->symmetric(), 0};
  } else if (const auto* coded = std::get_if<EntropyCodedView>(&w.base)) {
    absl::StatusOr<LinearLayout> entropy = EntropyLayout(*coded);
    if (!entropy.ok()) return entropy;
    layout = *entropy;
  } else {
    const auto& table = std::get<PackedTableView>(w.base);
    const std::optional<IntegerTable> integers = ExactIntegers(table);
    layout.dense = !integers;
    if (integers) layout.bits = integers->bits;
    layout.group = table.group;
  }
  if (w.sparse && !layout.dense) layout.sparse_entries += w.sparse->entries();
  return layout;
}

int64_t LayoutBytes(const LinearLayout& layout, const PackedLinearView& w) {
  const int64_t rows = RoundUp(w.rows(), kPanelRows), cols = w.cols();
  if (layout.dense) return rows * cols * 2;
  const int64_t groups = (cols + layout.group - 1) / layout.group;
  const int64_t per_group = 2 + (layout.symmetric ? 0 : 1);
  int64_t bytes = rows * (RoundUp(cols, 64) * layout.bits / 8 + groups * per_group);
  if (layout.sparse_entries > 0) {
    bytes += cpu::SparseWeights::BytesFor(w.rows(), layout.sparse_entries);
  }
  const bool factors = !w.col_scales.empty() || std::holds_alternative<EntropyCodedView>(w.base);
  const int64_t floats =
      (factors ? cols : 0) + (w.in.identity() ? 0 : cols) + (w.out.identity() ? 0 : w.rows());
  return bytes + 4 * floats;
}

absl::StatusOr<IntegerLinear> MakeIntegers(const PackedLinearView& w, const LinearLayout& layout) {
  IntegerLinear made;
  if (const auto* coded = std::get_if<EntropyCodedView>(&w.base)) {
    const absl::Status split = SplitEntropy(*coded, w.sparse, layout.bits, made);
    if (!split.ok()) return split;
  } else if (w.sparse) {
    made.sparse = SparseOf(*w.sparse);
  }
  if (const auto* table = std::get_if<PackedTableView>(&w.base)) {
    absl::StatusOr<PackedInt> integers = IntegersOf(*table);
    if (!integers.ok()) return integers.status();
    made.owned = *std::move(integers);
  }
  for (const uint16_t scale : w.col_scales) made.col_factors.push_back(HalfToFloat(scale));
  const auto* stored = std::get_if<PackedIntView>(&w.base);
  made.integers = stored != nullptr ? *stored : made.owned.view();
  made.sparse.ShrinkToFit();
  return made;
}

absl::StatusOr<std::vector<uint16_t>> MakeDense(const PackedLinearView& w) {
  std::vector<float> values(w.rows() * w.cols());
  if (absl::Status status = DecodeWeight(w, values.data()); !status.ok()) return status;
  std::vector<uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), FloatToHalf);
  return halves;
}

}  // namespace babai
