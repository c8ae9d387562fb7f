#include "kernels/formats/entropy_coded.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/formats/bit_stream.h"
#include "kernels/formats/entropy_model.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/layout_checks.h"
#include "kernels/formats/rans.h"

namespace babai {
namespace {

using entropy::kEscapeSymbol;
using entropy::kLanes;
using entropy::kTotal;
using entropy::RansWords;

constexpr int64_t kStateBytes = 4 * kLanes;

int64_t StripCount(int64_t rows) { return (rows + kEntropyStripRows - 1) / kEntropyStripRows; }

int64_t StripRows(int64_t rows, int64_t strip) {
  return std::min(kEntropyStripRows, rows - strip * kEntropyStripRows);
}

absl::Status Lost(absl::string_view rule) {
  return absl::DataLossError(absl::StrCat("entropy-coded strip: ", rule));
}

// Start and frequency of every symbol of every context.
struct Coding {
  std::vector<uint16_t> starts;  // like EntropyModel::frequencies

  explicit Coding(const EntropyModel& model) : starts(model.frequencies.size()) {
    for (size_t i = 0; i < starts.size(); ++i) {
      starts[i] = i % kEntropySymbols == 0
                      ? 0
                      : static_cast<uint16_t>(starts[i - 1] + model.frequencies[i - 1]);
    }
  }
};

// Everything of one integer, in the opposite order of its decoding.
void PutInteger(const EntropyModel& model, const Coding& coding, int context, int32_t z, int lane,
                entropy::RansEncoder& coder) {
  const int shift = model.shifts[context];
  const int32_t y = z >> shift;
  const int symbol = entropy::SymbolOf(y);
  if (shift > 0) coder.PutRaw(lane, static_cast<uint32_t>(z) & ((1u << shift) - 1), shift);
  if (symbol == kEscapeSymbol) {
    const uint32_t beyond = static_cast<uint32_t>(std::abs(y) - kEntropyEscape);
    coder.PutRaw(lane, beyond << 1 | (y < 0 ? 1 : 0), entropy::kEscapeBits);
  }
  const size_t at = context * kEntropySymbols + symbol;
  coder.Put(lane, coding.starts[at], model.frequencies[at]);
}

void EncodeStrip(const EntropyModel& model, const Coding& coding, absl::Span<const int32_t> z,
                 int64_t cols, int64_t strip, std::vector<uint8_t>& out) {
  entropy::RansEncoder coder;
  const int64_t first = strip * kEntropyStripRows;
  const int64_t rows = StripRows(static_cast<int64_t>(z.size()) / cols, strip);
  for (int64_t r = first + rows - 1; r >= first; --r) {
    for (int64_t c = cols - 1; c >= 0; --c) {
      const int lane = static_cast<int>(c % kLanes);
      PutInteger(model, coding, model.Context(r, c), z[r * cols + c], lane, coder);
    }
  }
  coder.Finish(kLanes, out);
}

absl::Status CheckSizes(const EntropyCodedView& w) {
  if (auto s = CheckDimensions(w.rows, w.cols); !s.ok()) return s;
  if (w.rows * w.cols > kEntropyMaxWeights) {
    return absl::InvalidArgumentError(absl::StrCat(w.rows, " x ", w.cols, ": too large"));
  }
  if (auto s = CheckLength("row_scales", w.row_scales.size(), w.rows); !s.ok()) return s;
  if (auto s = CheckLength("col_scales", w.col_scales.size(), w.cols); !s.ok()) return s;
  if (auto s = CheckFinite("row scale", w.row_scales); !s.ok()) return s;
  return CheckFinite("column scale", w.col_scales);
}

absl::Status CheckStrips(const EntropyCodedView& w) {
  const int64_t strips = StripCount(w.rows);
  if (auto s = CheckLength("strip_begin", w.strip_begin.size(), strips + 1); !s.ok()) return s;
  if (w.strip_begin.front() != 0 || w.strip_begin.back() != w.stream.size()) {
    return absl::InvalidArgumentError("strip_begin does not run from 0 to the end of the stream");
  }
  for (int64_t i = 0; i < strips; ++i) {
    const int64_t bytes = int64_t{w.strip_begin[i + 1]} - w.strip_begin[i];
    if (bytes < kStateBytes || bytes % 2 != 0) {
      return absl::InvalidArgumentError(absl::StrCat("strip ", i, " has ", bytes, " bytes"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t EntropyCoded::bytes() const {
  return static_cast<int64_t>(model.size() + 4 * strip_begin.size() + stream.size() +
                              2 * row_scales.size() + 2 * col_scales.size());
}

int64_t EntropyCodedBytes(const EntropyModel& model, absl::Span<const int32_t> z, int64_t rows,
                          int64_t cols) {
  const auto counts = entropy::CountSymbols(model, z, rows, cols, 1);
  double bits = 0;
  for (int k = 0; k < model.contexts; ++k) {
    for (int s = 0; s < kEntropySymbols; ++s) {
      const int raw = model.shifts[k] + (s == kEscapeSymbol ? entropy::kEscapeBits : 0);
      const int f = model.frequencies[k * kEntropySymbols + s];
      bits += counts[k][s] * static_cast<double>(raw + entropy::FrequencyBits(f));
    }
  }
  // A state is stored in 32 bits; it started with 16, and of the other 16 half are full on average.
  constexpr int64_t kStripOverhead = kLanes * (32 - 8) / 8;
  const int64_t strips = StripCount(rows);
  return static_cast<int64_t>(bits / 8) + strips * kStripOverhead + 4 * (strips + 1) +
         2 * (rows + cols) + static_cast<int64_t>(entropy::Serialize(model).size());
}

double EmpiricalEntropy(absl::Span<const int32_t> z) {
  std::vector<uint32_t> counts(2 * kEntropyLargest + 3);
  for (const int32_t v : z) {
    ++counts[std::clamp(v, -kEntropyLargest - 1, kEntropyLargest + 1) + kEntropyLargest + 1];
  }
  double bits = 0;
  for (const uint32_t n : counts) {
    if (n > 0) bits += n * std::log2(static_cast<double>(z.size()) / n);
  }
  return z.empty() ? 0 : bits / static_cast<double>(z.size());
}

absl::StatusOr<EntropyCoded> EncodeEntropy(absl::Span<const int32_t> z,
                                           absl::Span<const uint16_t> row_scales,
                                           absl::Span<const uint16_t> col_scales, int64_t rows,
                                           int64_t cols) {
  const EntropyCodedView parts = {{}, {}, {}, row_scales, col_scales, rows, cols};
  if (auto s = CheckSizes(parts); !s.ok()) return s;
  if (auto s = CheckLength("z", z.size(), rows * cols); !s.ok()) return s;
  for (const int32_t v : z) {
    if (v >= -kEntropyLargest && v <= kEntropyLargest) continue;
    return absl::InvalidArgumentError(absl::StrCat("integer ", v, " is beyond +-32767"));
  }
  const EntropyModel model = FitEntropyModel(z, rows, cols);
  const Coding coding(model);
  EntropyCoded coded;
  coded.model = entropy::Serialize(model);
  coded.strip_begin.push_back(0);
  for (int64_t strip = 0; strip < StripCount(rows); ++strip) {
    EncodeStrip(model, coding, z, cols, strip, coded.stream);
    if (coded.stream.size() > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError("more than 4 GiB of coded integers");
    }
    coded.strip_begin.push_back(static_cast<uint32_t>(coded.stream.size()));
  }
  coded.row_scales.assign(row_scales.begin(), row_scales.end());
  coded.col_scales.assign(col_scales.begin(), col_scales.end());
  coded.rows = rows;
  coded.cols = cols;
  return coded;
}

absl::StatusOr<EntropyCodedView> MakeEntropyCodedView(const EntropyCodedView& parts) {
  if (auto s = CheckSizes(parts); !s.ok()) return s;
  if (auto s = CheckStrips(parts); !s.ok()) return s;
  const auto model = entropy::Parse(parts.model, parts.rows, parts.cols);
  if (!model.ok()) return model.status();
  return parts;
}

absl::StatusOr<EntropyDecoder> EntropyDecoder::Make(const EntropyCodedView& w) {
  if (auto s = CheckSizes(w); !s.ok()) return s;
  if (auto s = CheckStrips(w); !s.ok()) return s;
  auto model = entropy::Parse(w.model, w.rows, w.cols);
  if (!model.ok()) return model.status();
  return EntropyDecoder(w, *std::move(model));
}

EntropyDecoder::EntropyDecoder(const EntropyCodedView& w, EntropyModel model)
    : w_(w), model_(std::move(model)) {
  const Coding coding(model_);
  for (int k = 0; k < model_.contexts; ++k) {
    const uint16_t* frequencies = &model_.frequencies[k * kEntropySymbols];
    if (k == 0 ||
        !std::equal(frequencies, frequencies + kEntropySymbols, frequencies - kEntropySymbols)) {
      Table& table = tables_.emplace_back();
      for (int s = 0; s < kEntropySymbols; ++s) {
        const uint32_t start = coding.starts[k * kEntropySymbols + s];
        table.range[s] = start << 16 | frequencies[s];
        std::memset(table.symbol + start, s, frequencies[s]);
      }
    }
    table_of_[k] = static_cast<uint8_t>(tables_.size() - 1);
    shifted_ = shifted_ || model_.shifts[k] != 0;
  }
}

namespace {

// Share of a context's integers that are outside [low, high].
double OutsideShare(const EntropyModel& model, int context, int32_t low, int32_t high) {
  const int shift = model.shifts[context];
  double share = 0;
  for (int s = 0; s < kEntropySymbols; ++s) {
    const int f = model.frequencies[context * kEntropySymbols + s];
    if (f == 0) continue;
    const int32_t width = 1 << shift;
    const int32_t first = (s - (kEntropyEscape - 1)) * width, last = first + width - 1;
    const int32_t inside = std::max(0, std::min(last, high) - std::max(first, low) + 1);
    const double part = s == kEscapeSymbol ? 1.0 : static_cast<double>(width - inside) / width;
    share += part * f / kTotal;
  }
  return share;
}

// One integer. `Table` is EntropyDecoder's.
template <bool kChecked, bool kShifted, class Table>
int32_t TakeInteger(const Table& table, int shift, uint32_t& x, RansWords& words) {
  const uint32_t slot = x & (kTotal - 1);
  const int symbol = table.symbol[slot];
  const uint32_t range = table.range[symbol];
  x = (range & 0xffff) * (x >> entropy::kFrequencyBits) + slot - (range >> 16);
  words.Refill<kChecked>(x);
  int32_t y = symbol - (kEntropyEscape - 1);
  if (symbol == kEscapeSymbol) [[unlikely]] {
    const uint32_t raw = entropy::TakeRaw<kChecked>(x, entropy::kEscapeBits, words);
    y = static_cast<int32_t>(raw >> 1) + kEntropyEscape;
    if (raw & 1) y = -y;
  }
  if constexpr (kShifted) {
    const uint32_t low = entropy::TakeRaw<kChecked>(x, shift, words);
    y = static_cast<int32_t>(static_cast<uint32_t>(y) << shift | low);
  }
  return y;
}

// Words that kLanes integers may take: each a symbol, an escape and low bits.
constexpr int64_t kGroupBytes = 2 * 3 * kLanes;

}  // namespace

template <bool kShifted>
absl::Status EntropyDecoder::Decode(int64_t strip,
                                    absl::FunctionRef<void(int64_t, const int32_t*)> row) const {
  const int64_t cols = w_.cols, first = strip * kEntropyStripRows;
  RansWords words = {w_.stream.data() + w_.strip_begin[strip],
                     w_.stream.data() + w_.strip_begin[strip + 1]};
  uint32_t x[kLanes];
  for (uint32_t& state : x) state = words.State();
  std::vector<uint8_t> contexts(cols);
  std::vector<int32_t> z(cols);
  uint32_t largest = 0;
  const auto take = [&]<bool kChecked>(int64_t c, int lane) {
    const int k = contexts[c];
    const int32_t v =
        TakeInteger<kChecked, kShifted>(tables_[table_of_[k]], model_.shifts[k], x[lane], words);
    z[c] = v;
    largest = std::max(largest, static_cast<uint32_t>(v < 0 ? -v : v));
  };
  for (int64_t r = 0; r < StripRows(w_.rows, strip); ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      contexts[c] = static_cast<uint8_t>(model_.Context(first + r, c));
    }
    int64_t c = 0;
    for (; c + kLanes <= cols && words.bytes_left() >= kGroupBytes; c += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) take.template operator()<false>(c + lane, lane);
    }
    for (; c < cols; ++c) take.template operator()<true>(c, static_cast<int>(c % kLanes));
    row(r, z.data());
  }
  if (words.overrun || words.bytes_left() != 0) return Lost("its length is wrong");
  if (largest > kEntropyLargest) return Lost("an integer is beyond +-32767");
  for (const uint32_t state : x) {
    if (state != entropy::kLowestState) return Lost("a final state is wrong");
  }
  return absl::OkStatus();
}

absl::Status EntropyDecoder::DecodeStrip(int64_t strip, int32_t* z) const {
  const auto copy = [&](int64_t r, const int32_t* row) {
    std::copy_n(row, w_.cols, z + r * w_.cols);
  };
  return shifted_ ? Decode<true>(strip, copy) : Decode<false>(strip, copy);
}

absl::Status EntropyDecoder::DecodeStripWeights(int64_t strip, float* out) const {
  std::vector<float> col_scales(w_.cols);
  for (int64_t c = 0; c < w_.cols; ++c) col_scales[c] = HalfToFloat(w_.col_scales[c]);
  const auto scale = [&](int64_t r, const int32_t* row) {
    const float row_scale = HalfToFloat(w_.row_scales[strip * kEntropyStripRows + r]);
    float* to = out + r * w_.cols;
    for (int64_t c = 0; c < w_.cols; ++c) {
      to[c] = row_scale * col_scales[c] * static_cast<float>(row[c]);
    }
  };
  return shifted_ ? Decode<true>(strip, scale) : Decode<false>(strip, scale);
}

int64_t EntropyDecoder::ExpectedOutside(int32_t low, int32_t high) const {
  std::array<int64_t, kEntropyMaxContexts> row_classes = {}, col_classes = {};
  for (const uint8_t c : model_.row_class) ++row_classes[c];
  for (const uint8_t c : model_.col_class) ++col_classes[c];
  std::array<double, kEntropyMaxContexts> weights = {};
  for (int a = 0; a < kEntropyMaxContexts; ++a) {
    for (int b = 0; b < kEntropyMaxContexts; ++b) {
      weights[std::min(a + b, model_.contexts - 1)] +=
          static_cast<double>(row_classes[a]) * static_cast<double>(col_classes[b]);
    }
  }
  double outside = 0;
  for (int k = 0; k < model_.contexts; ++k) {
    outside += weights[k] * OutsideShare(model_, k, low, high);
  }
  return static_cast<int64_t>(std::ceil(outside));
}

absl::Status DecodeStrip(const EntropyCodedView& w, int64_t strip, int32_t* z) {
  const absl::StatusOr<EntropyDecoder> decoder = EntropyDecoder::Make(w);
  return decoder.ok() ? decoder->DecodeStrip(strip, z) : decoder.status();
}

absl::Status DecodeStripWeights(const EntropyCodedView& w, int64_t strip, float* out) {
  const absl::StatusOr<EntropyDecoder> decoder = EntropyDecoder::Make(w);
  return decoder.ok() ? decoder->DecodeStripWeights(strip, out) : decoder.status();
}

}  // namespace babai
