// The kernels of quantization, each against its definition on the host.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "device.h"
#include "kernels/cuda/cholesky.h"
#include "kernels/cuda/codes.h"
#include "kernels/cuda/fit_scales.h"
#include "kernels/cuda/metric.h"
#include "kernels/cuda/moments.h"
#include "kernels/cuda/sweep.h"
#include "kernels/formats/packed_int.h"
#include "values.h"

namespace babai::cuda {
namespace {

constexpr double kEps = 0x1p-24;  // of fp32

class QuantizeOps : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    stream_ = *Stream::Make();
    auto cublas = Cublas::Make(stream_);
    if (!cublas.ok()) GTEST_SKIP() << "needs a GPU with cuBLAS: " << cublas.status().message();
    cublas_ = *std::move(cublas);
  }
  void Done(const absl::Status& status) {
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(stream_.Synchronize().ok());
  }
  Queue queue() const { return {stream_.get(), false}; }

  Stream stream_;
  std::unique_ptr<Cublas> cublas_;
};

// --- moments

class MomentsTest : public QuantizeOps,
                    public testing::WithParamInterface<std::tuple<Dtype, int, int>> {};

// fp32 sums that are cut off lose up to 2^-23 of the sum so far at each of tokens / 16 steps, and
// one more rounding at each of two calls.
TEST_P(MomentsTest, AreSumsOfProducts) {
  const auto [dtype, tokens, k] = GetParam();
  const std::vector<uint16_t> x = Encoded(RandomFloats(int64_t{tokens} * k, 1), dtype);
  const std::vector<float> wide = Decoded(x, dtype);
  const DeviceVector<uint16_t> device(x);
  const DeviceVector<float> h(std::vector<float>(int64_t{k} * k, 0.0f));
  const int first = tokens / 3;
  Done(AddMoments({device.data(), h.data(), first, k, dtype}, *cublas_));
  Done(AddMoments({device.data() + int64_t{first} * k, h.data(), tokens - first, k, dtype},
                  *cublas_));
  const std::vector<float> got = h.ToHost();
  const int stride = k > 500 ? 37 : 1;  // of the columns looked at
  for (int r = 0; r < k; ++r) {
    for (int c = r % stride; c <= r; c += stride) {
      double want = 0, magnitude = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        const double product = double{wide[t * k + r]} * wide[t * k + c];
        want += product, magnitude += std::abs(product);
      }
      ASSERT_NEAR(got[int64_t{r} * k + c], want, magnitude * 2 * kEps * (tokens / 16 + 4))
          << r << " " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, MomentsTest,
                         testing::Values(std::tuple{Dtype::kFp16, 300, 64},
                                         std::tuple{Dtype::kBf16, 77, 136},
                                         std::tuple{Dtype::kFp16, 40, 2056}));

// --- order, damping, factor

TEST_F(QuantizeOps, FactorIsThatOfTheOrderedMetric) {
  auto cholesky = Cholesky::Make(stream_);
  if (!cholesky.ok()) GTEST_SKIP() << "needs a GPU with cuSOLVER: " << cholesky.status().message();
  constexpr int kK = 200, kTokens = 500;
  const std::vector<float> x = RandomFloats(kTokens * kK, 2);
  std::vector<float> h(kK * kK, NAN);  // above the diagonal nothing may be read
  for (int r = 0; r < kK; ++r) {
    for (int c = 0; c <= r; ++c) {
      double sum = 0;
      for (int t = 0; t < kTokens; ++t) sum += double{x[t * kK + r]} * x[t * kK + c];
      h[r * kK + c] = static_cast<float>(sum);
    }
  }
  std::vector<int32_t> order(kK);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  std::vector<double> diag(kK);
  std::vector<uint8_t> dead(kK, 0);
  dead[17] = dead[150] = 1;
  for (int i = 0; i < kK; ++i) diag[i] = double{h[i * kK + i]} / kTokens + 0.01;
  const auto metric = [&](int r, int c) {
    const int a = order[std::max(r, c)], b = order[std::min(r, c)];
    if (a == b) return diag[a];
    if (dead[a] || dead[b]) return 0.0;
    return double{h[std::max(a, b) * kK + std::min(a, b)]} / kTokens;
  };
  const DeviceVector<float> sums(h), l(std::vector<float>(kK * kK, NAN));
  const DeviceVector<int32_t> columns(order);
  const DeviceVector<double> diagonal(diag), pivots(std::vector<double>(kK, NAN));
  const DeviceVector<uint8_t> dead_columns(dead);
  const DeviceVector<double> matrix(std::vector<double>(kK * kK, NAN));
  const DeviceVector<int> info(std::vector<int>{-1});
  const DeviceVector<double> work(std::vector<double>(*(*cholesky)->WorkspaceValues(kK)));
  const auto size = static_cast<int64_t>(work.ToHost().size());
  Launched(OrderMetric({sums.data(), columns.data(), diagonal.data(), dead_columns.data(),
                        1.0 / kTokens, matrix.data(), kK},
                       queue()));
  Done((*cholesky)->Run(matrix.data(), kK, work.data(), size, info.data()));
  EXPECT_EQ(info.ToHost()[0], 0);
  Launched(TakeFactor({matrix.data(), l.data(), pivots.data(), false, kK}, queue()));
  const std::vector<float> got = l.ToHost();
  const std::vector<double> p = pivots.ToHost();
  for (int r = 0; r < kK; ++r) {
    EXPECT_EQ(got[r * kK + r], static_cast<float>(p[r]));
    for (int c = 0; c < kK; ++c) {
      if (c > r) {
        ASSERT_EQ(got[r * kK + c], 0);
        continue;
      }
      double product = 0, magnitude = 0;
      for (int i = 0; i <= c; ++i) {
        const double term = double{got[r * kK + i]} * got[c * kK + i];
        product += term, magnitude += std::abs(term);
      }
      ASSERT_NEAR(product, metric(r, c), 4 * kEps * magnitude + 1e-12) << r << " " << c;
    }
  }
  // Rounded to tf32: 11 significant bits, to nearest.
  Launched(TakeFactor({matrix.data(), l.data(), nullptr, true, kK}, queue()));
  const std::vector<float> tf32 = l.ToHost();
  for (size_t i = 0; i < tf32.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(tf32[i]) & 0x1fff, 0u);
    ASSERT_NEAR(tf32[i], got[i], 0x1p-11 * std::abs(got[i]));
  }
}

TEST_F(QuantizeOps, SplitFactorAddsUpToTheFactor) {
  constexpr int kK = 300;
  const std::vector<float> values = RandomFloats(kK * kK, 12);
  std::vector<double> factor(values.begin(), values.end());
  const DeviceVector<double> device(factor);
  const DeviceVector<float> split(std::vector<float>(SplitValues(kK), NAN)),
      blocks(std::vector<float>(BlockValues(kK), NAN));
  Launched(SplitFactor({device.data(), split.data(), blocks.data(), kK}, queue()));
  const std::vector<float> parts = split.ToHost(), diagonal = blocks.ToHost();
  for (int r = 0; r < SplitPanels(kK) * kSplitRows; ++r) {
    const int panel = r / kSplitRows, row = r % kSplitRows, first = panel * kSplitRows;
    for (int c = 0; c < first; ++c) {
      const float* at = &parts[(panel * 3 * kSplitRows + row) * kK + c];
      const float high = at[0], low = at[kSplitRows * kK];
      const float want = r < kK ? values[c * kK + r] : 0;
      ASSERT_EQ(std::bit_cast<uint32_t>(high) & 0x1fff, 0u);
      ASSERT_EQ(high + low, want);
      ASSERT_LE(std::abs(low), 0x1p-11 * std::abs(want));
      ASSERT_EQ(at[2 * kSplitRows * kK], high);
    }
    for (int c = first; c < first + kSplitRows; ++c) {
      const float want = r < kK && c <= r ? values[c * kK + r] : 0;
      ASSERT_EQ(diagonal[(panel * kSplitRows + row) * kSplitRows + c - first], want);
    }
  }
}

TEST_F(QuantizeOps, NotPositiveDefiniteIsToldByItsPivot) {
  auto cholesky = Cholesky::Make(stream_);
  if (!cholesky.ok()) GTEST_SKIP() << "needs a GPU with cuSOLVER: " << cholesky.status().message();
  const DeviceVector<double> matrix(std::vector<double>{1, 2, 0, 1});
  const DeviceVector<int> info(std::vector<int>{-1});
  const int64_t size = *(*cholesky)->WorkspaceValues(2);
  const DeviceVector<double> work(std::vector<double>(std::max<int64_t>(1, size)));
  Done((*cholesky)->Run(matrix.data(), 2, work.data(), size, info.data()));
  EXPECT_EQ(info.ToHost()[0], 2);
}

// --- codes

class CodesTest : public QuantizeOps,
                  public testing::WithParamInterface<std::tuple<int, int, int, int>> {};

TEST_P(CodesTest, PackedCountedAndDecodedAsTheFormatSays) {
  const auto [bits, n, k, group] = GetParam();
  const int groups = k / group;
  std::mt19937 rng(4);
  std::vector<uint8_t> codes(n * k), zeros(n * groups);
  std::vector<uint16_t> scales(n * groups);
  for (uint8_t& v : codes) v = rng() & ((1 << bits) - 1);
  for (uint8_t& v : zeros) v = rng() & ((1 << bits) - 1);
  for (uint16_t& v : scales) v = 0x2000 | (rng() & 0x3ff);
  const PackedInt want = *PackInt(codes, scales, zeros, n, k, group, bits);
  const auto turned = [n = n](const auto& rows, int cols) {
    auto out = rows;
    for (int r = 0; r < n; ++r) {
      for (int c = 0; c < cols; ++c) out[c * n + r] = rows[r * cols + c];
    }
    return out;
  };
  const DeviceVector<uint8_t> device_codes(turned(codes, k)), device_zeros(turned(zeros, groups));
  const DeviceVector<uint16_t> device_scales(turned(scales, groups));
  const DeviceVector<uint8_t> packed(std::vector<uint8_t>(want.codes.size(), 0xee));
  const DeviceVector<uint8_t> packed_zeros(std::vector<uint8_t>(want.zeros.size(), 0xee));
  const DeviceVector<uint16_t> row_scales(std::vector<uint16_t>(scales.size(), 0xeeee));
  const auto code_bytes = static_cast<int64_t>(want.codes.size()) / n;
  const auto zero_bytes = static_cast<int64_t>(want.zeros.size()) / n;
  Launched(PackStreams({device_codes.data(), packed.data(), k, n, bits, code_bytes}, queue()));
  Launched(PackStreams({device_zeros.data(), packed_zeros.data(), groups, n, bits, zero_bytes},
                       queue()));
  Launched(TurnHalves({device_scales.data(), row_scales.data(), groups, n}, queue()));
  EXPECT_EQ(packed.ToHost(), want.codes);
  EXPECT_EQ(packed_zeros.ToHost(), want.zeros);
  EXPECT_EQ(row_scales.ToHost(), want.scales);

  const DeviceVector<unsigned long long> counts(std::vector<unsigned long long>(256, 0));
  const int first = n / 3, rows = n - first - 1;
  Launched(CountCodes({device_codes.data(), counts.data(), k, n, first, rows}, queue()));
  std::vector<unsigned long long> expected(256, 0);
  for (int i = first * k; i < (first + rows) * k; ++i) ++expected[codes[i]];
  EXPECT_EQ(counts.ToHost(), expected);

  if (k % 8 != 0) return;
  for (const Dtype dtype : {Dtype::kFp16, Dtype::kBf16}) {
    const DeviceVector<uint16_t> decoded(std::vector<uint16_t>(n * k, 0xffff));
    Launched(DecodeCodes({packed.data(), device_scales.data(), device_zeros.data(), decoded.data(),
                          n, k, group, bits, code_bytes, dtype},
                         queue()));
    const std::vector<uint16_t> got = decoded.ToHost();
    for (int r = 0; r < n; ++r) {
      for (int c = 0; c < k; ++c) {
        ASSERT_EQ(got[r * k + c], Encode(DecodeWeight(want.view(), r, c), dtype)) << r << " " << c;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CodesTest,
                         testing::Values(std::tuple{2, 70, 96, 32}, std::tuple{3, 33, 160, 32},
                                         std::tuple{4, 300, 256, 64}, std::tuple{8, 5, 64, 64},
                                         std::tuple{3, 40, 56, 56}, std::tuple{2, 9, 40, 8}));

TEST_F(QuantizeOps, StackedRowsAreFeatureMajor) {
  constexpr int kRows = 45, kK = 70, kN = 100, kFirst = 33;
  const std::vector<float> w = RandomFloats(kRows * kK, 5);
  const DeviceVector<float> device(w), stack(std::vector<float>(kK * kN, -7.0f));
  Launched(StackRows({device.data(), stack.data(), kRows, kK, kN, kFirst}, queue()));
  const std::vector<float> got = stack.ToHost();
  for (int c = 0; c < kK; ++c) {
    for (int r = 0; r < kN; ++r) {
      const bool inside = r >= kFirst && r < kFirst + kRows;
      ASSERT_EQ(got[c * kN + r], inside ? w[(r - kFirst) * kK + c] : -7.0f);
    }
  }
}

// --- the sweep

class SweepTest : public QuantizeOps,
                  public testing::WithParamInterface<std::tuple<int, int, int, int>> {};

// Follows the codes that the kernel chose in fp64: at each position its error may differ from the
// definition's only by a rounding at a near tie, so u must lie where it rounds to the code taken,
// up to what fp32 sums of that many terms can be off.
TEST_P(SweepTest, EveryCodeIsTheRoundingOfWhatItsSuccessorsLeft) {
  const auto [bits, n, k, group] = GetParam();
  const int groups = k / group, max_code = (1 << bits) - 1;
  std::mt19937 rng(6);
  const std::vector<float> w = RandomFloats(int64_t{k} * n, 7, 0.02f);
  std::vector<float> l(int64_t{k} * k, 0.0f), diag(k), inverse(k);
  std::normal_distribution<float> normal;
  for (int r = 0; r < k; ++r) {
    for (int c = 0; c < r; ++c) l[int64_t{r} * k + c] = 0.3f * normal(rng) / std::sqrt(float(k));
    diag[r] = l[int64_t{r} * k + r] = 0.5f + std::abs(normal(rng));
    inverse[r] = 1 / diag[r];
  }
  std::vector<int32_t> order(k);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  std::vector<uint16_t> scales(groups * n);
  std::vector<uint8_t> zeros(groups * n);
  for (uint16_t& v : scales)
    v = Encode(0.1f / max_code * (0.5f + (rng() % 100) / 100.0f), Dtype::kFp16);
  for (uint8_t& v : zeros) v = rng() % (max_code + 1);
  std::vector<double> factor(int64_t{k} * k, 0.0);  // as Cholesky::Run leaves it
  for (int r = 0; r < k; ++r) {
    for (int c = 0; c <= r; ++c) factor[int64_t{c} * k + r] = l[int64_t{r} * k + c];
  }
  const DeviceVector<double> dfactor(factor);
  const DeviceVector<float> split(std::vector<float>(SplitValues(k), NAN)),
      blocks(std::vector<float>(BlockValues(k), NAN));
  Launched(SplitFactor({dfactor.data(), split.data(), blocks.data(), k}, queue()));
  const DeviceVector<float> dw(w), ddiag(diag), dinverse(inverse);
  const DeviceVector<int32_t> dorder(order);
  const DeviceVector<uint16_t> dscales(scales);
  const DeviceVector<uint8_t> dzeros(zeros), codes(std::vector<uint8_t>(int64_t{k} * n, 0xff));
  const DeviceVector<float> sums(std::vector<float>(int64_t{k} * n, NAN)),
      errors(std::vector<float>(int64_t{kSweepErrors} * n, NAN));
  const DeviceVector<double> losses(std::vector<double>(n, NAN));
  const DeviceVector<int> clipped(std::vector<int>(n, -1));
  Done(Sweep({dw.data(), dorder.data(), split.data(), blocks.data(), ddiag.data(), dinverse.data(),
              dscales.data(), dzeros.data(), sums.data(), errors.data(), codes.data(),
              losses.data(), clipped.data(), n, k, group, max_code},
             *cublas_, queue()));
  const std::vector<uint8_t> got = codes.ToHost();
  const std::vector<double> loss = losses.ToHost();
  const std::vector<int> outside = clipped.ToHost();
  for (int row = 0; row < n; row += std::max(1, n / 24)) {
    std::vector<double> error(k);
    double want_loss = 0;
    int want_clipped = 0, near = 0;
    for (int p = k - 1; p >= 0; --p) {
      const int64_t at = int64_t{order[p]} * n + row, g = int64_t{order[p] / group} * n + row;
      double s = 0, magnitude = 0;
      for (int i = p + 1; i < k; ++i) {
        const double term = l[int64_t{i} * k + p] * error[i];
        s += term, magnitude += std::abs(term);
      }
      const double scale = Decode(scales[g], Dtype::kFp16), u = w[at] + s / diag[p];
      const double code = std::clamp<double>(u / scale + zeros[g], 0.0, max_code);
      const double slack = (8 + std::sqrt(k)) * kEps * (magnitude / diag[p] + std::abs(u)) / scale;
      ASSERT_LE(std::abs(got[at] - code), 0.5 + slack) << row << " " << p;
      error[p] = w[at] - scale * (int{got[at]} - int{zeros[g]});
      const double y = diag[p] * (u - scale * (int{got[at]} - int{zeros[g]}));
      want_loss += y * y;
      const double wanted = std::nearbyint(u / scale) + zeros[g];
      want_clipped += wanted < 0 || wanted > max_code;
      near += std::abs(std::abs(u / scale - std::floor(u / scale)) - 0.5) < slack;
    }
    EXPECT_NEAR(loss[row], want_loss, 1e-5 * want_loss) << row;
    EXPECT_NEAR(outside[row], want_clipped, near) << row;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SweepTest,
                         testing::Values(std::tuple{4, 100, 256, 64}, std::tuple{2, 33, 100, 100},
                                         std::tuple{3, 70, 1300, 260}, std::tuple{8, 40, 36, 36},
                                         std::tuple{4, 8300, 160, 32}));

TEST_F(QuantizeOps, NormsAreThoseOfTheSortedWeights) {
  constexpr int kN = 50, kK = 1100;
  const std::vector<float> w = Rounded(RandomFloats(kN * kK, 8), Dtype::kFp16);
  std::vector<float> l(int64_t{kK} * kK, 0.0f);
  const std::vector<float> random = Rounded(RandomFloats(int64_t{kK} * kK, 9), Dtype::kBf16);
  for (int r = 0; r < kK; ++r) std::copy_n(&random[r * kK], r + 1, &l[r * kK]);
  std::vector<int32_t> order(kK);
  std::iota(order.rbegin(), order.rend(), 0);
  const DeviceVector<float> dw(w), dl(l), sorted(std::vector<float>(kN * kK, NAN)),
      products(std::vector<float>(kNormColumns * kN, NAN));
  const DeviceVector<int32_t> dorder(order);
  const DeviceVector<double> losses(std::vector<double>(kN, NAN));
  Done(SquaredNorms(
      {dw.data(), dorder.data(), dl.data(), sorted.data(), products.data(), losses.data(), kN, kK},
      *cublas_, queue()));
  const std::vector<double> got = losses.ToHost();
  for (int row = 0; row < kN; ++row) {
    double want = 0;
    for (int c = 0; c < kK; ++c) {
      double y = 0;
      for (int p = c; p < kK; ++p) y += double{w[order[p] * kN + row]} * l[p * kK + c];
      want += y * y;
    }
    ASSERT_NEAR(got[row], want, 1e-5 * want) << row;
  }
}

}  // namespace
}  // namespace babai::cuda
