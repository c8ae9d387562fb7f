// Format F6: integers of any size, entropy-coded, with one step a column and one scale a row.
//
//   meaning     w(r, c) = row_scale(r) * col_scale(c) * z(r, c),  z an integer, |z| <= 32767
//   row_scales  [rows] fp16 bit patterns; col_scales [cols] fp16 bit patterns; finite
//   contexts    how spread the integers are varies by row and by column. Each row and each column
//               has a class; z(r, c) is coded in context min(row_class + col_class, contexts - 1)
//   tables      a context has a shift and a static distribution, of 12-bit frequencies that sum to
//               4096, of the symbols of y = z >> shift: -kEscape+1 .. kEscape-1 and "escape" (then
//               |y| - kEscape and the sign follow, raw). The low `shift` bits of z follow, raw
//   strips      kStripRows rows each are coded alone (rANS, interleaved states), so that any strip
//               can be decoded without the others; strip_begin [strips + 1] u32 byte offsets into
//               `stream`
//   cost        the coded bytes, tables, classes, offsets and scales: bytes()
//   source      rANS: Duda, arXiv:1311.2540. Integers with column steps: WaterSIC,
//   arXiv:2603.04956; with
//               one step: HPTQ, arXiv:2507.18553. Coding by row and column class is ours.
//
// docs/formats.md has every byte. To change it, add a layout; never edit this one.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace babai {

inline constexpr int kEntropyEscape = 31;
inline constexpr int64_t kEntropyStripRows = 64;
inline constexpr int kEntropyMaxContexts = 32;
// Few bytes can stand for many weights: this bounds what a hostile file makes a reader allocate.
inline constexpr int64_t kEntropyMaxWeights = int64_t{1} << 32;

inline constexpr int kEntropySymbols = 2 * kEntropyEscape;  // y + kEscape - 1; the last: escape
inline constexpr int kEntropyMaxShift = 10;
inline constexpr int32_t kEntropyLargest = 32767;

// How integers are modelled: classes and tables. Frequencies are > 0 for every symbol that occurs
// in the integers that the model was fitted to.
struct EntropyModel {
  std::vector<uint8_t> row_class;  // [rows], < kEntropyMaxContexts
  std::vector<uint8_t> col_class;  // [cols], < kEntropyMaxContexts
  int contexts = 0;
  std::vector<uint16_t> frequencies;  // [contexts, kEntropySymbols]
  std::vector<uint8_t> shifts;        // [contexts]

  int Context(int64_t row, int64_t col) const {
    const int sum = row_class[row] + col_class[col];
    return sum < contexts ? sum : contexts - 1;
  }

  // Coded length in bits of integer z in a context by this model (without the rounding of a coder).
  // A symbol without a frequency counts as if it had half of one: 13 bits.
  float Bits(int context, int32_t z) const;
};

// Owns nothing. Read-only: any number of threads may use it.
struct EntropyCodedView {
  absl::Span<const uint8_t> model;  // serialized classes and tables
  absl::Span<const uint32_t> strip_begin;
  absl::Span<const uint8_t> stream;
  absl::Span<const uint16_t> row_scales, col_scales;
  int64_t rows = 0, cols = 0;
};

// An owned F6 matrix.
struct EntropyCoded {
  std::vector<uint8_t> model;
  std::vector<uint32_t> strip_begin;
  std::vector<uint8_t> stream;
  std::vector<uint16_t> row_scales, col_scales;
  int64_t rows = 0, cols = 0;

  EntropyCodedView view() const {
    return {model, strip_begin, stream, row_scales, col_scales, rows, cols};
  }
  int64_t bytes() const;
};

// Fits classes and tables to z [rows, cols]: as many contexts as pay for their tables. Requires
// rows, cols >= 1.
EntropyModel FitEntropyModel(absl::Span<const int32_t> z, int64_t rows, int64_t cols);

// Bytes that EncodeEntropy would make of z, to a few bytes a strip, without coding: for searching
// steps.
int64_t EntropyCodedBytes(const EntropyModel& model, absl::Span<const int32_t> z, int64_t rows,
                          int64_t cols);

// Mean over the weights of -log2 of the empirical frequency of each integer in the whole matrix:
// what the literature calls the entropy of Z.
double EmpiricalEntropy(absl::Span<const int32_t> z);

// InvalidArgument: sizes disagree, or |z| > 32767.
absl::StatusOr<EntropyCoded> EncodeEntropy(absl::Span<const int32_t> z,
                                           absl::Span<const uint16_t> row_scales,
                                           absl::Span<const uint16_t> col_scales, int64_t rows,
                                           int64_t cols);

// Checks sizes, offsets, classes and tables. InvalidArgument names the rule. The stream itself is
// checked by decoding.
absl::StatusOr<EntropyCodedView> MakeEntropyCodedView(const EntropyCodedView& parts);

// Decodes strips; reads what a view describes once. Refers to the view's buffers. Any number of
// threads may use it.
class EntropyDecoder {
 public:
  // InvalidArgument: as MakeEntropyCodedView.
  static absl::StatusOr<EntropyDecoder> Make(const EntropyCodedView& w);

  // Integers of one strip: rows [strip * kEntropyStripRows, ...) into z [rows of the strip, cols].
  // DataLoss: the stream does not decode (a final state, a length or an escape is wrong).
  absl::Status DecodeStrip(int64_t strip, int32_t* z) const;
  // The same as weights, fp32.
  absl::Status DecodeStripWeights(int64_t strip, float* out) const;

  // About how many integers lie outside [low, high], low <= 0 <= high, by the model alone, without
  // decoding. All that are escapes count.
  int64_t ExpectedOutside(int32_t low, int32_t high) const;

  int64_t rows() const { return w_.rows; }
  int64_t cols() const { return w_.cols; }

 private:
  struct Table {
    uint8_t symbol[4096];             // of a slot
    uint32_t range[kEntropySymbols];  // start << 16 | frequency
  };
  EntropyDecoder(const EntropyCodedView& w, EntropyModel model);
  template <bool kShifted>
  absl::Status Decode(int64_t strip, absl::FunctionRef<void(int64_t, const int32_t*)> row) const;

  EntropyCodedView w_;
  EntropyModel model_;
  std::vector<Table> tables_;
  uint8_t table_of_[kEntropyMaxContexts];  // equal contexts share a table
  bool shifted_ = false;
};

// One strip by a decoder made for it alone. DataLoss as above.
absl::Status DecodeStrip(const EntropyCodedView& w, int64_t strip, int32_t* z);
absl::Status DecodeStripWeights(const EntropyCodedView& w, int64_t strip, float* out);

}  // namespace babai
