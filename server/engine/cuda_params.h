// Vectors of parameters (norms, biases, position rows), gathered on the host to be one buffer on
// the device.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/cuda/add_norm.h"
#include "server/engine/block.h"

namespace babai {

// Those of a block, on the device; null where the model has none.
struct CudaBlockParams {
  cuda::NormWeights attn_norm, mlp_norm, post_attn_norm, post_mlp_norm;
  const float *q_norm = nullptr, *k_norm = nullptr;
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr, *o_bias = nullptr;
  const float *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
};

// Not thread-safe. The pointers to be filled must outlive it.
class CudaParams {
 public:
  // `to` gets the device pointer in Point(), plus `skip` values; it stays null for an empty vector.
  void Add(const std::vector<float>& values, const float** to, int64_t skip = 0) {
    if (values.empty()) return;
    slots_.push_back({static_cast<int64_t>(values_.size()) + skip, to});
    values_.insert(values_.end(), values.begin(), values.end());
    values_.resize(Padded(static_cast<int64_t>(values_.size())));
  }
  void Add(const NormParams& norm, cuda::NormWeights* to) {
    Add(norm.weight, &to->weight);
    Add(norm.bias, &to->bias);
  }
  void Add(const BlockParams& from, CudaBlockParams* to) {
    Add(from.attn_norm, &to->attn_norm);
    Add(from.mlp_norm, &to->mlp_norm);
    Add(from.post_attn_norm, &to->post_attn_norm);
    Add(from.post_mlp_norm, &to->post_mlp_norm);
    Add(from.q_norm.weight, &to->q_norm);
    Add(from.k_norm.weight, &to->k_norm);
    for (const auto& [values, pointer] :
         {std::pair{&from.q_bias, &to->q_bias}, std::pair{&from.k_bias, &to->k_bias},
          std::pair{&from.v_bias, &to->v_bias}, std::pair{&from.o_bias, &to->o_bias},
          std::pair{&from.gate_bias, &to->gate_bias}, std::pair{&from.up_bias, &to->up_bias},
          std::pair{&from.down_bias, &to->down_bias}}) {
      Add(*values, pointer);
    }
  }

  // To be copied to `device`, 16-byte aligned, which every pointer then points into.
  const std::vector<float>& values() const { return values_; }
  void Point(const float* device) const {
    for (const Slot& slot : slots_) *slot.to = device + slot.at;
  }
  // What a vector takes: each begins at 16 bytes.
  static int64_t Padded(int64_t values) { return (values + 3) / 4 * 4; }

 private:
  struct Slot {
    int64_t at;
    const float** to;
  };
  std::vector<float> values_;
  std::vector<Slot> slots_;
};

}  // namespace babai
