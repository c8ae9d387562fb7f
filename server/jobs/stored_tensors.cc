#include "server/jobs/stored_tensors.h"

#include <string>

#include "kernels/formats/float16.h"
#include "server/quant/layer.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kEmbeddingGroup = 32;

bool IsEmbedding(const TensorInfo& tensor) {
  return tensor.name == "embed.weight" || tensor.name == "head.weight";
}

bool IsPackedEmbedding(const TensorInfo& tensor, const Recipe& recipe) {
  return IsEmbedding(tensor) && recipe.solver != Solver::kDense && recipe.embedding_bits < 16;
}

Recipe EmbeddingRecipe(int64_t hidden, int bits) {
  Recipe recipe;
  recipe.solver = Solver::kNearest;
  recipe.scale_fit = bits == 8 ? ScaleFit::kAbsMax : ScaleFit::kMse;
  recipe.bits = bits;
  recipe.symmetric = bits == 8;
  recipe.group_size = hidden % kEmbeddingGroup == 0 ? kEmbeddingGroup : -1;
  return recipe;
}

void RoundTo(DType dtype, std::vector<float>& values) {
  if (dtype == DType::kF16) {
    for (float& v : values) v = HalfToFloat(FloatToHalf(v));
  } else if (dtype == DType::kBF16) {
    for (float& v : values) v = Bf16ToFloat(FloatToBf16(v));
  }
}

int64_t Elements(const TensorInfo& tensor) {
  int64_t count = 1;
  for (const int64_t d : tensor.shape) count *= d;
  return count;
}

// Codes of `bits`, and a scale (and zero) a group.
absl::StatusOr<int64_t> GridBytes(const TensorInfo& tensor, const Recipe& recipe, int bits) {
  const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
  const auto group = GroupFor(recipe, cols);
  if (!group.ok()) {
    return Refuse(group.status().code(), reason::kInvalidField, "recipe.group_size",
                  tensor.name + ": " + std::string(group.status().message()));
  }
  const int64_t codes = PackedIntCodeBytes(rows, cols, bits);
  const bool has_zeros = recipe.grid == GridKind::kUniform && !recipe.symmetric;
  const int64_t zeros = has_zeros ? PackedIntZeroBytes(rows, cols, *group, bits) : 0;
  if (codes < 0 || zeros < 0) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, tensor.name,
                  "its shape can not be packed");
  }
  return codes + zeros + 2 * rows * ((cols + *group - 1) / *group);
}

// At most what a linear takes, to a per cent: entropy-coded ones meet their target that closely.
absl::StatusOr<int64_t> PackedBytesOf(const TensorInfo& tensor, const Recipe& recipe) {
  constexpr int64_t kSparseEntry = 4, kSparseRow = 4;
  const int64_t rows = tensor.shape[0], weights = rows * tensor.shape[1];
  if (recipe.target_bits > 0)
    return static_cast<int64_t>(1.01 * recipe.target_bits / 8 * static_cast<double>(weights));
  auto bytes = GridBytes(tensor, recipe, recipe.bits);
  if (!bytes.ok()) return bytes;
  if (recipe.grid == GridKind::kKMeans) *bytes += 2 * rows << recipe.bits;
  if (recipe.grid == GridKind::kBinaryCoding) *bytes += 2 * rows * (1 + recipe.bits);
  if (recipe.outlier_rule != OutlierRule::kNone) {
    *bytes +=
        kSparseRow * (rows + 1) +
        static_cast<int64_t>(recipe.outliers * 1.02 * static_cast<double>(weights)) * kSparseEntry;
  }
  return bytes;
}

bool IsQuantizedLinear(const TensorInfo& tensor, const Recipe& recipe) {
  return IsBlockLinear(tensor) && recipe.solver != Solver::kDense;
}

absl::StatusOr<int64_t> BytesOf(const TensorInfo& tensor, const Recipe& recipe) {
  if (IsPackedEmbedding(tensor, recipe)) {
    return PackedBytesOf(tensor, EmbeddingRecipe(tensor.shape[1], recipe.embedding_bits));
  }
  if (IsQuantizedLinear(tensor, recipe)) return PackedBytesOf(tensor, recipe);
  return Elements(tensor) * (StoredDenseType(tensor, recipe) == DType::kF32 ? 4 : 2);
}

}  // namespace

bool IsInBlock(const TensorInfo& tensor) { return tensor.name.rfind("blocks.", 0) == 0; }

bool IsBlockLinear(const TensorInfo& tensor) {
  return IsInBlock(tensor) && tensor.shape.size() == 2;
}

DType StoredDenseType(const TensorInfo& tensor, const Recipe& recipe) {
  if (tensor.shape.size() < 2) return DType::kF32;
  switch (recipe.dense_type) {
    case DenseType::kF32:
      return DType::kF32;
    case DenseType::kF16:
      return DType::kF16;
    case DenseType::kBF16:
      return DType::kBF16;
    case DenseType::kSource:
      break;
  }
  if (tensor.source_dtype != DType::kQuantized) return tensor.source_dtype;
  return recipe.solver == Solver::kDense ? DType::kF32 : DType::kF16;
}

absl::StatusOr<StoredTensorValues> PrepareTensor(const Checkpoint& checkpoint,
                                                 const TensorInfo& tensor, const Recipe& recipe,
                                                 ThreadPool& pool,
                                                 const std::function<bool()>& stop) {
  auto values = checkpoint.Read(tensor.name);
  if (!values.ok()) return values.status();
  StoredTensorValues stored;
  stored.values = *std::move(values);
  stored.dtype = StoredDenseType(tensor, recipe);
  if (!IsPackedEmbedding(tensor, recipe)) {
    RoundTo(stored.dtype, stored.values);
    return stored;
  }
  const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
  LinearProblem problem;
  problem.w = stored.values;
  problem.n = rows;
  problem.k = cols;
  auto quantized =
      QuantizeLinear(problem, EmbeddingRecipe(cols, recipe.embedding_bits), pool, stop);
  if (!quantized.ok()) return quantized.status();
  stored.packed = std::get<PackedInt>(std::move(quantized->packed.base));
  pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end) {
    DecodeRows(stored.packed->view(), begin, end, stored.values.data() + begin * cols);
  });
  return stored;
}

absl::Status AddTensor(const TensorInfo& tensor, const StoredTensorValues& stored,
                       PackedModelWriter& writer) {
  if (stored.packed) return writer.AddPackedInt(tensor.name, stored.packed->view());
  return writer.AddDense(tensor.name, stored.values, tensor.shape, stored.dtype);
}

TensorSource SourceAsServed(const Checkpoint& checkpoint, const Recipe& recipe, ThreadPool& pool,
                            const std::function<bool()>& stop) {
  TensorSource source = SourceOf(checkpoint);
  source.read = [&](std::string_view name) -> absl::StatusOr<std::vector<float>> {
    const TensorInfo* tensor = checkpoint.Find(name);
    if (tensor == nullptr) return checkpoint.Read(name).status();
    auto stored = PrepareTensor(checkpoint, *tensor, recipe, pool, stop);
    if (!stored.ok()) return stored.status();
    return std::move(stored->values);
  };
  return source;
}

absl::StatusOr<double> TargetBits(const Checkpoint& checkpoint, const Recipe& recipe) {
  int64_t others = 0, weights = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (IsQuantizedLinear(tensor, recipe)) {
      weights += Elements(tensor);
      continue;
    }
    const auto bytes = BytesOf(tensor, recipe);
    if (!bytes.ok()) return bytes.status();
    others += *bytes;
  }
  const double bits = 8 * static_cast<double>(recipe.target_bytes - others) /
                      static_cast<double>(std::max<int64_t>(weights, 1));
  if (bits >= 1) return bits;
  return InvalidField("recipe.target_bytes",
                      "embeddings and norms take " + std::to_string(others) + " bytes (see " +
                          "recipe.embedding_bits) and linears at least 1 bit a weight: " +
                          std::to_string(others + weights / 8) + " bytes");
}

absl::StatusOr<int64_t> PackedBytes(const Checkpoint& checkpoint, const Recipe& recipe) {
  if (recipe.target_bytes > 0) {
    const auto bits = TargetBits(checkpoint, recipe);
    return bits.ok() ? absl::StatusOr<int64_t>(recipe.target_bytes) : bits.status();
  }
  int64_t sum = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const auto bytes = BytesOf(tensor, recipe);
    if (!bytes.ok()) return bytes.status();
    sum += *bytes;
  }
  return sum;
}

}  // namespace babai
