#include "kernels/formats/entropy_model.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/formats/rans.h"

namespace babai {
namespace entropy {
namespace {

constexpr uint8_t kRepeat = 0x80;  // a context like the one before it

std::array<float, kTotal + 1> MakeFrequencyBits() {
  std::array<float, kTotal + 1> bits;
  bits[0] = kFrequencyBits + 1;
  for (int f = 1; f <= kTotal; ++f) bits[f] = kFrequencyBits - std::log2(static_cast<float>(f));
  return bits;
}

// Bytes of a serialized model, written.
void PutVarint(uint32_t value, std::vector<uint8_t>& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<uint8_t>(value | 0x80));
  out.push_back(static_cast<uint8_t>(value));
}

// The used range of a table: [first, end) of `n` entries; all of it 0: empty.
struct UsedRange {
  int first, end;
};

UsedRange UsedOf(absl::Span<const uint16_t> frequencies) {
  int first = 0, end = static_cast<int>(frequencies.size());
  while (first < end && frequencies[first] == 0) ++first;
  while (end > first && frequencies[end - 1] == 0) --end;
  return {first, end};
}

void PutRange(absl::Span<const uint16_t> frequencies, std::vector<uint8_t>& out) {
  const auto [first, end] = UsedOf(frequencies);
  out.push_back(static_cast<uint8_t>(first));
  out.push_back(static_cast<uint8_t>(end - first));
  for (int i = first; i < end; ++i) PutVarint(frequencies[i], out);
}

void PutTable(absl::Span<const uint16_t> frequencies, std::vector<uint8_t>& out) {
  PutRange(frequencies.first(kEscapeSymbol), out);
  PutVarint(frequencies[kEscapeSymbol], out);
}

using ClassTable = std::array<uint16_t, kEntropyMaxContexts>;

ClassTable FitClassTable(const std::vector<uint8_t>& classes) {
  Counts counts = {};
  for (const uint8_t c : classes) ++counts[c];
  const Frequencies fitted = Normalize(counts);
  ClassTable table;
  std::copy_n(fitted.begin(), table.size(), table.begin());
  return table;
}

bool OnlyOne(const ClassTable& table) {
  return *std::max_element(table.begin(), table.end()) == kTotal;
}

std::array<uint16_t, kEntropyMaxContexts> StartsOf(const ClassTable& table) {
  std::array<uint16_t, kEntropyMaxContexts> starts;
  uint16_t sum = 0;
  for (size_t i = 0; i < table.size(); ++i, sum += table[i - 1]) starts[i] = sum;
  return starts;
}

// A table, and unless all classes are equal, the number of words and one lane of rANS.
void PutClasses(const std::vector<uint8_t>& classes, std::vector<uint8_t>& out) {
  const ClassTable table = FitClassTable(classes);
  PutRange(table, out);
  if (OnlyOne(table)) return;
  const auto starts = StartsOf(table);
  RansEncoder coder;
  for (auto c = classes.rbegin(); c != classes.rend(); ++c) coder.Put(0, starts[*c], table[*c]);
  PutVarint(static_cast<uint32_t>(coder.words()), out);
  coder.Finish(1, out);
}

// Reads the bytes of a serialized model; the first thing that is wrong is kept.
class Reader {
 public:
  explicit Reader(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}

  bool ok() const { return error_.empty(); }
  absl::Status status() const { return absl::InvalidArgumentError("entropy model: " + error_); }
  void Require(bool condition, const char* rule) {
    if (!condition && ok()) error_ = rule;
  }

  uint32_t Byte() {
    Require(!bytes_.empty(), "it ends too early");
    if (!ok()) return 0;
    const uint8_t byte = bytes_.front();
    bytes_.remove_prefix(1);
    return byte;
  }

  uint32_t Varint() {
    uint32_t value = 0;
    for (int shift = 0; shift < 28; shift += 7) {
      const uint32_t byte = Byte();
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    Require(false, "a number is too long");
    return 0;
  }

  // Returns the sum.
  uint32_t Range(absl::Span<uint16_t> frequencies) {
    const uint32_t first = Byte(), count = Byte();
    Require(first + count <= frequencies.size(), "a table reaches beyond its symbols");
    uint32_t sum = 0;
    for (uint32_t i = 0; ok() && i < count; ++i) {
      const uint32_t f = Frequency();
      frequencies[first + i] = static_cast<uint16_t>(f);
      sum += f;
    }
    return sum;
  }

  void Table(absl::Span<uint16_t> frequencies) {
    const uint32_t sum = Range(frequencies.first(kEscapeSymbol));
    const uint32_t escape = Frequency();
    frequencies[kEscapeSymbol] = static_cast<uint16_t>(escape);
    Require(sum + escape == kTotal, "frequencies do not sum to 4096");
  }

  std::vector<uint8_t> Classes(int64_t count) {
    ClassTable table = {};
    Require(Range(absl::MakeSpan(table)) == kTotal, "frequencies of classes do not sum to 4096");
    if (!ok()) return {};
    std::vector<uint8_t> classes(count);
    if (OnlyOne(table)) {
      const auto only = std::max_element(table.begin(), table.end()) - table.begin();
      std::fill(classes.begin(), classes.end(), static_cast<uint8_t>(only));
    } else {
      DecodeClasses(table, classes);
    }
    return classes;
  }

  void End() { Require(bytes_.empty(), "bytes are left over"); }

 private:
  uint32_t Frequency() {
    const uint32_t f = Varint();
    Require(f <= kTotal, "a frequency is above 4096");
    return ok() ? f : 0;
  }

  void DecodeClasses(const ClassTable& table, std::vector<uint8_t>& classes) {
    const uint64_t length = 4 + 2 * uint64_t{Varint()};
    Require(length <= bytes_.size(), "it ends too early");
    if (!ok()) return;
    const auto starts = StartsOf(table);
    RansWords words = {bytes_.data(), bytes_.data() + length};
    uint32_t x = words.State();
    for (uint8_t& c : classes) {
      const uint32_t slot = x & (kTotal - 1);
      const auto above = std::upper_bound(starts.begin(), starts.end(), slot);
      c = static_cast<uint8_t>(above - starts.begin() - 1);
      x = table[c] * (x >> kFrequencyBits) + slot - starts[c];
      words.Refill<true>(x);
    }
    Require(!words.overrun && words.bytes_left() == 0 && x == kLowestState,
            "its classes do not decode");
    bytes_.remove_prefix(length);
  }

  absl::Span<const uint8_t> bytes_;
  std::string error_;
};

absl::Span<uint16_t> TableAt(EntropyModel& model, int context) {
  return absl::MakeSpan(model.frequencies).subspan(context * kEntropySymbols, kEntropySymbols);
}

absl::Span<const uint16_t> TableAt(const EntropyModel& model, int context) {
  return absl::MakeSpan(model.frequencies).subspan(context * kEntropySymbols, kEntropySymbols);
}

bool LikeTheOneBefore(const EntropyModel& model, int context) {
  return context > 0 && model.shifts[context] == model.shifts[context - 1] &&
         TableAt(model, context) == TableAt(model, context - 1);
}

void ReadContext(Reader& in, int k, EntropyModel& model) {
  const uint32_t head = in.Byte();
  if (head == kRepeat) {
    in.Require(k > 0, "the first context repeats another");
    if (k == 0) return;
    model.shifts[k] = model.shifts[k - 1];
    std::copy_n(TableAt(model, k - 1).begin(), kEntropySymbols, TableAt(model, k).begin());
    return;
  }
  in.Require(head <= kEntropyMaxShift, "a shift is too large");
  model.shifts[k] = static_cast<uint8_t>(head);
  in.Table(TableAt(model, k));
}

}  // namespace

std::vector<Counts> CountSymbols(const EntropyModel& model, absl::Span<const int32_t> z,
                                 int64_t rows, int64_t cols, int64_t row_step) {
  // Neighbours count in separate copies: the same symbol twice would wait for its own store.
  constexpr int kCopies = 4, kStride = 64;
  const int contexts = model.contexts;
  std::vector<uint32_t> counts(kCopies * contexts * kStride);
  std::vector<uint16_t> base(cols);
  const uint8_t* shifts = model.shifts.data();
  for (int64_t r = 0; r < rows; r += row_step) {
    const int32_t* row = z.data() + r * cols;
    for (int64_t c = 0; c < cols; ++c) base[c] = static_cast<uint16_t>(model.Context(r, c));
    for (int64_t c = 0; c < cols; ++c) {
      const int copy = static_cast<int>(c) & (kCopies - 1);
      ++counts[(copy * contexts + base[c]) * kStride + SymbolOf(row[c] >> shifts[base[c]])];
    }
  }
  std::vector<Counts> sums(contexts, Counts{});
  for (int i = 0; i < kCopies * contexts; ++i) {
    for (int s = 0; s < kEntropySymbols; ++s) sums[i % contexts][s] += counts[i * kStride + s];
  }
  return sums;
}

float FrequencyBits(int frequency) {
  static const std::array<float, kTotal + 1> bits = MakeFrequencyBits();
  return bits[frequency];
}

Frequencies Normalize(const Counts& counts) {
  uint64_t total = 0;
  for (const uint32_t n : counts) total += n;
  Frequencies f = {};
  int left = kTotal;
  for (int s = 0; s < kEntropySymbols; ++s) {
    if (counts[s] == 0) continue;
    f[s] = static_cast<uint16_t>(std::max<uint64_t>(1, (counts[s] * kTotal + total / 2) / total));
    left -= f[s];
  }
  // One at a time to or from where it helps most or hurts least.
  const int step = left > 0 ? 1 : -1;
  for (; left != 0; left -= step) {
    int best = -1;
    float best_gain = 0;
    for (int s = 0; s < kEntropySymbols; ++s) {
      if (counts[s] == 0 || f[s] + step < 1) continue;
      const float gain = counts[s] * (FrequencyBits(f[s]) - FrequencyBits(f[s] + step));
      if (best >= 0 && gain <= best_gain) continue;
      best = s;
      best_gain = gain;
    }
    f[best] = static_cast<uint16_t>(f[best] + step);
  }
  return f;
}

std::vector<uint8_t> Serialize(const EntropyModel& model) {
  std::vector<uint8_t> out;
  out.push_back(static_cast<uint8_t>(model.contexts));
  for (int k = 0; k < model.contexts; ++k) {
    if (LikeTheOneBefore(model, k)) {
      out.push_back(kRepeat);
      continue;
    }
    out.push_back(model.shifts[k]);
    PutTable(TableAt(model, k), out);
  }
  PutClasses(model.row_class, out);
  PutClasses(model.col_class, out);
  return out;
}

absl::StatusOr<EntropyModel> Parse(absl::Span<const uint8_t> bytes, int64_t rows, int64_t cols) {
  Reader in(bytes);
  EntropyModel model;
  model.contexts = static_cast<int>(in.Byte());
  in.Require(model.contexts >= 1 && model.contexts <= kEntropyMaxContexts,
             "contexts must be 1 to 32");
  if (!in.ok()) return in.status();
  model.frequencies.resize(model.contexts * kEntropySymbols);
  model.shifts.resize(model.contexts);
  for (int k = 0; in.ok() && k < model.contexts; ++k) ReadContext(in, k, model);
  if (in.ok()) model.row_class = in.Classes(rows);
  if (in.ok()) model.col_class = in.Classes(cols);
  in.End();
  if (!in.ok()) return in.status();
  return model;
}

}  // namespace entropy

float EntropyModel::Bits(int context, int32_t z) const {
  const int shift = shifts[context];
  const int symbol = entropy::SymbolOf(z >> shift);
  const int raw = shift + (symbol == entropy::kEscapeSymbol ? entropy::kEscapeBits : 0);
  return static_cast<float>(raw) +
         entropy::FrequencyBits(frequencies[context * kEntropySymbols + symbol]);
}

}  // namespace babai
