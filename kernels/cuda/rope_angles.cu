#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rope_angles.h"

namespace babai::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void RopeAnglesKernel(RopeAnglesArgs a) {
  StartStep();
  const int t = blockIdx.x;
  const double position = a.positions[t];
  for (int i = threadIdx.x; i < a.pairs; i += kThreads) {
    double sine, cosine;
    sincos(position * a.inv_freq[i], &sine, &cosine);
    const float scale = a.scales[i];
    a.angles[int64_t{t} * a.pairs + i] =
        make_float2(static_cast<float>(cosine * scale), static_cast<float>(sine * scale));
  }
}

}  // namespace

cudaError_t RopeAngles(const RopeAnglesArgs& args, const Queue& queue) {
  return Launch(RopeAnglesKernel, dim3(args.count), kThreads, 0, queue, args);
}

}  // namespace babai::cuda
