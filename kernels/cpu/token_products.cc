#include "kernels/cpu/token_products.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {
namespace {

// Panels whose columns are multiplied with all others at a time: with 1024 tokens they take 256 KiB
// of the second-level cache, and the 64 KiB of one more panel stream past them.
constexpr int64_t kPanels = 4;
// Rows of a product that are added to the fp64 sums at a time.
constexpr int64_t kRows = 128;

int64_t PanelsOf(int64_t width) { return (width + kLanes - 1) / kLanes; }

// Columns [16 panel, ...) of rows of x, less those of minus.
void FillPanel(const float* x, const float* minus, int64_t tokens, int64_t width, int64_t panel,
               float* to) {
  const int64_t first = panel * kLanes;
  const int64_t columns = std::min<int64_t>(kLanes, width - first);
  for (int64_t t = 0; t < tokens; ++t, to += kLanes) {
    const float* from = x + t * width + first;
    if (columns == kLanes) {
      std::memcpy(to, from, kLanes * sizeof(float));
    } else {
      std::fill(std::copy(from, from + columns, to), to + kLanes, 0.0f);
    }
    if (minus == nullptr) continue;
    const float* less = minus + t * width + first;
    for (int64_t c = 0; c < columns; ++c) to[c] -= less[c];
  }
}

// The columns of b's panels [panel, panel + kPanels) of out, rows from `first_row` on.
void AddColumns(const TokenPanels& a, const TokenPanels& b, int64_t panel, int64_t first_row,
                double* out) {
  const int64_t steps = a.tokens(), column = panel * kLanes;
  const int64_t columns = std::min(kPanels * kLanes, b.width() - column);
  alignas(64) float block[kRows * kPanels * kLanes];
  for (int64_t row = first_row; row < a.width(); row += kRows) {
    const int64_t rows = std::min(kRows, a.width() - row);
    Kernels().panel_products(a.data() + row * steps, rows, b.data() + column * steps,
                             static_cast<int>(PanelsOf(columns)), steps, block, kPanels * kLanes);
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = block + r * kPanels * kLanes;
      double* to = out + (row + r) * b.width() + column;
      for (int64_t c = 0; c < columns; ++c) to[c] += from[c];
    }
  }
}

// Groups of panels go to whichever thread is free: those of a triangle differ in work.
void AddAll(const TokenPanels& a, const TokenPanels& b, bool lower, double* out, ThreadPool& pool) {
  const int64_t groups = (PanelsOf(b.width()) + kPanels - 1) / kPanels;
  std::atomic<int64_t> next{0};
  pool.RunOnAll([&](int, int) {
    for (int64_t group; (group = next.fetch_add(1)) < groups;) {
      const int64_t panel = group * kPanels;
      AddColumns(a, b, panel, lower ? panel * kLanes : 0, out);
    }
  });
}

}  // namespace

absl::Status TokenPanels::Fill(const float* x, const float* minus, int64_t tokens, int64_t width,
                               ThreadPool& pool) {
  const int64_t panel_floats = tokens * kLanes;
  const auto bytes = static_cast<int64_t>(PanelsOf(width) * panel_floats * sizeof(float));
  tokens_ = width_ = 0;
  if (data_.size() < bytes) data_ = AlignedBuffer(bytes);
  if (data_.size() < bytes) {
    return absl::ResourceExhaustedError("there was not enough memory for second moments");
  }
  float* panels = reinterpret_cast<float*>(data_.data());
  pool.ParallelFor(PanelsOf(width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      FillPanel(x, minus, tokens, width, p, panels + p * panel_floats);
    }
  });
  tokens_ = tokens;
  width_ = width;
  return absl::OkStatus();
}

bool TokenPanels::AllBelow(float limit, ThreadPool& pool) const {
  std::atomic<uint32_t> largest{0};
  const float* x = data();
  pool.ParallelFor(PanelsOf(width_) * tokens_ * kLanes, kLanes, [&](int64_t begin, int64_t end) {
    // Bit patterns without their sign: infinities and NaNs are the largest of all.
    uint32_t mine = 0;
    for (int64_t i = begin; i < end; ++i) {
      mine = std::max(mine, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFu);
    }
    for (uint32_t seen = largest; seen < mine && !largest.compare_exchange_weak(seen, mine);) {
    }
  });
  return largest < std::bit_cast<uint32_t>(limit);
}

void AddProducts(const TokenPanels& a, const TokenPanels& b, double* out, ThreadPool& pool) {
  AddAll(a, b, false, out, pool);
}

void AddGram(const TokenPanels& a, double* gram, ThreadPool& pool) {
  AddAll(a, a, true, gram, pool);
}

}  // namespace babai::cpu
