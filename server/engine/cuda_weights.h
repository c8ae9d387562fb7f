// All parameters of a model in the GPU's execution layout.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/add_norm.h"
#include "kernels/cuda/embed.h"
#include "server/engine/cuda_linear.h"
#include "server/engine/cuda_params.h"
#include "server/model/config.h"
#include "server/store/packed_model.h"

namespace babai {

// Device pointers into CudaWeights::params; null where the model has none.
struct CudaBlock : CudaBlockParams {
  CudaLinear qkv;  // rows of q, then k, then v
  CudaLinear o;
  // Rows of gate, then up, or eight by eight where order() says so; only up where the MLP is not
  // gated.
  CudaLinear gate_up;
  CudaLinear down;
};

struct CudaWeights {
  cuda::Dtype dtype = cuda::Dtype::kFp16;  // of activations and dense weights
  std::vector<CudaBlock> blocks;
  cuda::NormWeights final_norm;
  const float* positions = nullptr;  // learned rows, the one of position 0 first
  const float* head_bias = nullptr;
  CudaLinear head;
  cuda::EmbeddingTable embedding;

  cuda::Buffer params;                     // every vector, fp32
  std::vector<cuda::Buffer> embedding_of;  // what `embedding` points to
  int64_t bytes = 0;                       // of everything above
  CudaGemmNeeds needs;                     // of all products
};

// fp16, or bf16 where outputs of linears may have any size: models that norm them before they are
// added to the residual stream.
cuda::Dtype ActivationType(const ModelConfig& config);

// On the current device; the weights are there when it returns. Errors of CudaLinear::Load.
absl::StatusOr<std::unique_ptr<CudaWeights>> LoadCudaWeights(const PackedModel& model);

// CudaWeights::bytes without loading, up to 31 rows a matrix too much (cuda_linear.h says of what
// it is an estimate), and CudaWeights::needs. DataLoss: a matrix is missing.
absl::StatusOr<CudaLinearPlan> PlanCudaWeights(const PackedModel& model);

}  // namespace babai
