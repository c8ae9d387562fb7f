#include <algorithm>

#include "server/quant/solver.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

absl::Status NoMemory() {
  return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                "no memory for the factor");
}

// out [count, width] with out[t, i] = L[first + i, t], zero beyond the matrix.
template <typename T>
void LoadTransposed(const Factor& f, int64_t first, int64_t width, int64_t count, T* out) {
  for (int64_t i = 0; i < width; ++i) {
    const int64_t row = first + i;
    const double* in = f.l.data() + row * f.k;
    for (int64_t t = 0; t < count; ++t) {
      out[t * width + i] = row < f.k && t <= row ? static_cast<T>(in[t]) : T{0};
    }
  }
}

// Rows [first, first + kLanes) of H = L L' into the layout of MetricView. `scratch` holds
// [k, kLanes + kFactorBlock].
template <typename T>
void MetricRows(const Factor& f, int64_t first, T* scratch, T* values) {
  const int64_t padded = RoundUpToBlock(f.k);
  T* rows = scratch;
  T* block = scratch + f.k * kLanes<T>;
  LoadTransposed(f, first, kLanes<T>, f.k, rows);
  alignas(64) T sums[kFactorBlock * kLanes<T>];
  for (int64_t b = 0; b < padded / kFactorBlock; ++b) {
    const int64_t terms = std::min({f.k, (b + 1) * kFactorBlock, first + kLanes<T>});
    LoadTransposed(f, b * kFactorBlock, kFactorBlock, terms, block);
    TileSumsForCpu<T>().products(block, rows, terms, sums);
    T* out = values + b * kFactorBlock * padded;
    for (int64_t i = 0; i < kLanes<T> && first + i < padded; ++i) {
      for (int64_t c = 0; c < kFactorBlock; ++c) {
        out[(first + i) * kFactorBlock + c] = sums[c * kLanes<T> + i];
      }
    }
  }
}

}  // namespace

template <typename T>
absl::StatusOr<PackedFactor<T>> PackedFactor<T>::Make(const Factor& factor, ThreadPool& pool,
                                                      bool for_descent) {
  const int64_t k = factor.k, padded = RoundUpToBlock(k), blocks = padded / kFactorBlock;
  PackedFactor packed;
  packed.factor_ = &factor;
  packed.columns_ = TileBuffer<T>(FactorBlockOffset(blocks, padded));
  if (packed.columns_.data() == nullptr) return NoMemory();
  pool.ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kFactorBlock, width = std::min(kFactorBlock, k - first);
      T* out = packed.columns_.data() + FactorBlockOffset(b, padded);
      for (int64_t row = first; row < k; ++row) {
        const double* in = factor.l.data() + row * k + first;
        for (int64_t c = 0; c < width; ++c)
          out[(row - first) * kFactorBlock + c] = static_cast<T>(in[c]);
      }
    }
  });
  for (int64_t p = 0; p < k; ++p) {
    packed.diag_.push_back(static_cast<T>(factor.l[p * k + p]));
    packed.inverse_diag_.push_back(static_cast<T>(1 / factor.l[p * k + p]));
  }
  if (for_descent) {
    if (absl::Status s = packed.MakeMetric(pool); !s.ok()) return s;
  }
  return packed;
}

template <typename T>
absl::Status PackedFactor<T>::MakeMetric(ThreadPool& pool) {
  const int64_t k = factor_->k, padded = RoundUpToBlock(k);
  metric_ = TileBuffer<T>(padded * padded);
  if (metric_.data() == nullptr) return NoMemory();
  const int64_t scratch = k * (kLanes<T> + kFactorBlock) * static_cast<int64_t>(sizeof(T));
  const absl::Status done =
      ForEachTile(padded, kLanes<T>, scratch, pool, nullptr, [&](TileRows rows, uint8_t* memory) {
        MetricRows(*factor_, rows.first, reinterpret_cast<T*>(memory), metric_.data());
      });
  if (!done.ok()) return done;
  for (int64_t p = 0; p < k; ++p) {
    const T diag =
        metric_
            .data()[p / kFactorBlock * kFactorBlock * padded + p * kFactorBlock + p % kFactorBlock];
    metric_diag_.push_back(diag);
    metric_inverse_.push_back(1 / diag);
  }
  return absl::OkStatus();
}

template <typename T>
FactorView<T> PackedFactor<T>::view() const {
  return {columns_.data(), diag_.data(), inverse_diag_.data(), factor_->order.data(), factor_->k};
}

template <typename T>
MetricView<T> PackedFactor<T>::metric() const {
  return {metric_.data(), metric_inverse_.data(), metric_diag_.data()};
}

template class PackedFactor<float>;
template class PackedFactor<double>;

}  // namespace babai
