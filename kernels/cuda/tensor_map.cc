#include "kernels/cuda/tensor_map.h"

namespace babai::cuda {
namespace {

// The driver's cuTensorMapEncodeTiled, found through the runtime so that nothing links libcuda.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);
EncodeTiled FindEncodeTiled() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                       &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<EncodeTiled>(entry);
}

}  // namespace

cudaError_t MakeXMap(const void* x, int m, int k, Dtype dtype, int tokens, CUtensorMap* map) {
  static const EncodeTiled encode = FindEncodeTiled();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t size[] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(m)};
  const cuuint64_t stride[] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t box[] = {kXBoxCols, static_cast<cuuint32_t>(tokens)}, step[] = {1, 1};
  const CUresult made = encode(
      map,
      dtype == Dtype::kFp16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(x), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return made == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace babai::cuda
