#include "kernels/cuda/sm_part.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cuda/cublas.h"
#include "tests/kernels/cuda/device.h"
#include "tests/kernels/cuda/where_blocks_run.h"

namespace babai::cuda {
namespace {

constexpr int kMostSms = 1024;

int Sms() {
  int sms = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
  return sms;
}

class SmPartTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    auto part = SmPart::Leaving(1.0 / 4);
    if (absl::IsFailedPrecondition(part.status())) {
      GTEST_SKIP() << "needs a GPU whose driver makes parts: " << part.status().message();
    }
    ASSERT_TRUE(part.ok()) << part.status();
    part_ = *std::move(part);
    auto stream = part_->MakeStream();
    ASSERT_TRUE(stream.ok()) << stream.status();
    confined_ = *std::move(stream);
    usual_ = *Stream::Make();
  }
  // Which multiprocessors long blocks, several for each place, run on.
  static std::vector<int> Where(const Stream& stream) {
    const DeviceVector<int> seen{std::vector<int>(kMostSms)};
    constexpr int kThreads = 1024, kCycles = 20000;
    EXPECT_EQ(WhereBlocksRun(8 * Sms(), kThreads, kCycles, seen.data(), stream.get()),
              cudaSuccess);
    EXPECT_TRUE(stream.Synchronize().ok());
    return seen.ToHost();
  }
  // A product by cuBLAS on the stream, of the same numbers each time.
  static std::vector<float> Product(const Stream& stream) {
    constexpr int kSide = 512;
    std::vector<float> a(kSide * kSide);
    for (size_t i = 0; i < a.size(); ++i) a[i] = std::sin(static_cast<float>(i));
    const DeviceVector<float> x(a), y(std::vector<float>(a.size(), std::nanf("")));
    auto cublas = Cublas::Make(stream);
    if (!cublas.ok()) return {};
    GemmCall call;
    call.m = call.n = call.k = call.lda = call.ldb = call.ldc = kSide;
    call.a = call.b = x.data(), call.c = y.data();
    EXPECT_TRUE((*cublas)->Gemm(call).ok());
    EXPECT_TRUE(stream.Synchronize().ok());
    return y.ToHost();
  }

  std::unique_ptr<SmPart> part_;
  Stream confined_, usual_;  // go before the part
};

TEST_F(SmPartTest, LeavesAtLeastWhatItWasAsked) {
  EXPECT_GT(part_->sms(), 0);
  EXPECT_LE(part_->sms(), Sms() * 3 / 4);
  EXPECT_EQ(SmPart::Leaving(1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SmPartTest, KernelsStayInsideThePart) {
  const std::vector<int> confined = Where(confined_), usual = Where(usual_);
  EXPECT_EQ(std::accumulate(confined.begin(), confined.end(), 0), part_->sms());
  EXPECT_EQ(std::accumulate(usual.begin(), usual.end(), 0), Sms());
  EXPECT_EQ(Where(confined_), confined);  // the same ones again
}

TEST_F(SmPartTest, ProductsAreTheSame) {
  const std::vector<float> confined = Product(confined_), usual = Product(usual_);
  if (confined.empty()) GTEST_SKIP() << "needs a GPU with cuBLAS";
  EXPECT_EQ(confined, usual);
}

}  // namespace
}  // namespace babai::cuda
