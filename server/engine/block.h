// The parts of a decoder block between its linears, for every family of ModelConfig, on fp32
// buffers in host memory. The serving runner and the calibration forward both use them, so that
// they can not disagree about a family. In the order of a forward pass, with x [tokens, hidden] the
// residual stream:
//
//   RotaryAngles::Set(positions)       once for all blocks
//   x = embedding rows                 FinishEmbedding(x)            scale, learned positions
//   each block:
//     h = NormRows(attn_norm, x)
//     q, k, v = h Wq', h Wk', h Wv'    FinishQkv(q, k, v)            biases, q/k norms, RoPE
//     a = attention(q, k, v)           CausalAttention(), or the runner's paged kernel
//     y = a Wo'                        AddToResidual(o_bias, post_attn_norm, y, x)
//     h = NormRows(mlp_norm, x)
//     g = h Wgate', u = h Wup'         Activate(g, u, a)             biases, act(g) * u or act(u)
//     y = a Wdown'                     AddToResidual(down_bias, post_mlp_norm, y, x)
//   h = NormRows(final_norm, x)
//   l = h Whead'                       FinishLogits(l)               bias, softcap
//
// Matrices are row-major, one token a row; a `stride` is the distance of two rows in floats. Every
// function is thread-safe on distinct buffers, splits its work over the pool, and treats each token
// alone (CausalAttention: each query alone): results do not depend on what else is in the call.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/model/checkpoint.h"
#include "server/model/config.h"
#include "server/store/packed_model.h"

namespace babai {

// Where parameters come from: the canonical tensors of a checkpoint or of a packed model.
struct TensorSource {
  std::function<bool(std::string_view)> has;
  std::function<absl::StatusOr<std::vector<float>>(std::string_view)> read;
};
// The object must outlive the source.
TensorSource SourceOf(const Checkpoint& checkpoint);
TensorSource SourceOf(const PackedModel& model);

// A norm's parameters; `weight` already holds norm_weight_offset. Empty weight: no such norm.
struct NormParams {
  std::vector<float> weight;
  std::vector<float> bias;  // empty: none
};

// A block's parameters that are not matrices. Empty vectors: the model has none.
struct BlockParams {
  NormParams attn_norm, mlp_norm;
  NormParams post_attn_norm, post_mlp_norm;  // ModelConfig::post_norms
  NormParams q_norm, k_norm;                 // ModelConfig::qk_norm
  std::vector<float> q_bias, k_bias, v_bias, o_bias;
  std::vector<float> gate_bias, up_bias, down_bias;
};

// The model's parameters outside blocks, but for the embedding and head matrices.
struct ModelParams {
  std::vector<float> positions;  // [rows, hidden], learned positions only
  NormParams final_norm;
  std::vector<float> head_bias;
};

// "blocks.3.q.weight" and the like.
std::string BlockTensor(int64_t block, std::string_view name);

// InvalidArgument INVALID_MODEL_FILE: a tensor's size does not fit the config, or a norm is
// missing.
absl::StatusOr<BlockParams> LoadBlockParams(const ModelConfig& config, int64_t block,
                                            const TensorSource& source);
absl::StatusOr<ModelParams> LoadModelParams(const ModelConfig& config, const TensorSource& source);

// x[t] = x[t] * embedding_scale + learned position row of positions[t]. x [tokens, hidden] holds
// the embedding rows.
void FinishEmbedding(const ModelConfig& config, const ModelParams& params,
                     absl::Span<const int32_t> positions, float* x, ThreadPool& pool);

// The same from a dense embedding matrix [vocab, hidden]. Requires ids in [0, vocab).
void EmbedTokens(const ModelConfig& config, const ModelParams& params,
                 absl::Span<const float> embedding, absl::Span<const int32_t> ids,
                 absl::Span<const int32_t> positions, float* x, ThreadPool& pool);

// out[t] = norm(x[t]) over rows of hidden floats. `out` may be x.
void NormRows(const ModelConfig& config, const NormParams& norm, const float* x, int64_t tokens,
              float* out, ThreadPool& pool);

// Rows of q, k and v as the linears left them. They may be parts of one merged buffer.
struct QkvRows {
  float* q = nullptr;  // [tokens, q_rows()]
  float* k = nullptr;  // [tokens, kv_rows()]
  float* v = nullptr;  // [tokens, kv_rows()]
  int64_t q_stride = 0, kv_stride = 0;
};

// cos and sin of every position, for each of the model's ropes; the same for all blocks of a step.
class RotaryAngles {
 public:
  explicit RotaryAngles(const ModelConfig& config);
  // Allocates only when there are more positions than ever before.
  void Set(absl::Span<const int32_t> positions);
  int64_t tokens() const { return tokens_; }

 private:
  friend void FinishQkv(const ModelConfig&, int64_t, const BlockParams&, const RotaryAngles&,
                        const QkvRows&, ThreadPool&);
  struct Table {
    std::vector<double> inv_freq;
    double scale = 1;
    std::vector<float> cos, sin;  // [tokens, inv_freq.size()]
  };
  std::vector<Table> tables_;
  int64_t tokens_ = 0;
};

// Adds the biases, norms each head of q and k, turns q and k by the rope of layer `block`, in
// place. Rows are those of the positions last Set().
void FinishQkv(const ModelConfig& config, int64_t block, const BlockParams& params,
               const RotaryAngles& angles, const QkvRows& rows, ThreadPool& pool);

// out [tokens, q_rows()] = causal attention of one whole sequence that starts at position 0, with
// the layer's sliding window, scale and softcap. Rows as FinishQkv() left them. Allocates a cache
// of its own. ResourceExhausted OUT_OF_MEMORY: no memory for it.
absl::Status CausalAttention(const ModelConfig& config, int64_t block, const QkvRows& rows,
                             int64_t tokens, float* out, ThreadPool& pool);

// out[t] = act(gate[t] + gate_bias) * (up[t] + up_bias), or act(up[t] + up_bias) for a model
// without gate (then `gate` is not read). Rows of intermediate floats; gate and up may be
// overwritten; out is contiguous and may be gate or up where that is contiguous too.
void Activate(const ModelConfig& config, const BlockParams& params, float* gate,
              int64_t gate_stride, float* up, int64_t up_stride, int64_t tokens, float* out,
              ThreadPool& pool);

// x[t] += post(y[t] + bias) over rows of hidden floats, where `post` is the identity if it has no
// weight. `bias` may be empty. y is overwritten.
void AddToResidual(const ModelConfig& config, absl::Span<const float> bias, const NormParams& post,
                   float* y, int64_t tokens, float* x, ThreadPool& pool);

// Head bias and logit_softcap, in place, on logits [tokens, vocab].
void FinishLogits(const ModelConfig& config, const ModelParams& params, float* logits,
                  int64_t tokens, ThreadPool& pool);

}  // namespace babai
