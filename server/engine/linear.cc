#include "server/engine/linear.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// A kernel's own refusal, as one a caller can act on.
absl::Status Refused(const absl::Status& status, std::string_view name) {
  const std::string message(status.message());
  if (absl::IsResourceExhausted(status)) {
    return Refuse(status.code(), reason::kOutOfMemory, name, message);
  }
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, name, message);
}

bool SameFormat(const StoredFormat& a, const StoredFormat& b) {
  if (a.kind != b.kind) return false;
  if (a.kind == StoredFormat::Kind::kDense) return a.dtype == b.dtype;
  return a.bits == b.bits && a.group == b.group && a.symmetric == b.symmetric;
}

absl::StatusOr<cpu::DenseView> DenseViewOf(const PackedModel& model, const std::string& name) {
  std::vector<int64_t> shape;
  absl::StatusOr<absl::Span<const uint8_t>> bytes = model.DenseTensor(name, &shape);
  if (!bytes.ok()) return bytes.status();
  if (shape.size() != 2) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, name,
                  "is not a matrix");
  }
  return cpu::DenseView{bytes->data(), KernelType(model.Format(name).dtype), shape[0], shape[1]};
}

constexpr int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

FloatType KernelType(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return FloatType::kF16;
    case DType::kBF16:
      return FloatType::kBf16;
    default:
      return FloatType::kF32;
  }
}

absl::StatusOr<Linear> Linear::Make(const PackedModel& model, absl::Span<const std::string> names) {
  Linear linear;
  for (size_t begin = 0, end; begin < names.size(); begin = end) {
    const StoredFormat format = model.Format(names[begin]);
    const bool packed = format.kind == StoredFormat::Kind::kPackedInt;
    std::vector<PackedIntView> ints;
    std::vector<cpu::DenseView> floats;
    for (end = begin; end < names.size() && SameFormat(model.Format(names[end]), format); ++end) {
      if (packed) {
        absl::StatusOr<PackedIntView> view = model.PackedIntTensor(names[end]);
        if (!view.ok()) return view.status();
        ints.push_back(*view);
      } else {
        absl::StatusOr<cpu::DenseView> view = DenseViewOf(model, names[end]);
        if (!view.ok()) return view.status();
        floats.push_back(*view);
      }
    }
    const absl::Status added =
        packed ? linear.AddPacked(ints, names[begin]) : linear.AddDense(floats, names[begin]);
    if (!added.ok()) return added;
  }
  return linear;
}

absl::StatusOr<Linear> Linear::Make(const Checkpoint& checkpoint,
                                    absl::Span<const std::string> names) {
  std::vector<std::vector<float>> values;
  std::vector<cpu::DenseView> views;
  for (const std::string& name : names) {
    const TensorInfo* info = checkpoint.Find(name);
    if (info == nullptr || info->shape.size() != 2) {
      return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidModelFile, name,
                    "is missing or not a matrix");
    }
    absl::StatusOr<std::vector<float>> read = checkpoint.Read(name);
    if (!read.ok()) return read.status();
    values.push_back(*std::move(read));
    views.push_back({values.back().data(), FloatType::kF32, info->shape[0], info->shape[1]});
  }
  Linear linear;
  if (absl::Status added = linear.AddDense(views, names[0]); !added.ok()) return added;
  return linear;
}

absl::Status Linear::AddPacked(absl::Span<const PackedIntView> views, std::string_view name) {
  absl::StatusOr<cpu::PackedIntWeights> weights = cpu::PackedIntWeights::Make(views);
  if (!weights.ok()) return Refused(weights.status(), name);
  const int64_t rows = weights->rows(), cols = weights->cols();
  return AddRows(*std::move(weights), rows, cols, name);
}

absl::Status Linear::AddDense(absl::Span<const cpu::DenseView> views, std::string_view name) {
  absl::StatusOr<cpu::DenseWeights> weights = cpu::DenseWeights::Make(views);
  if (!weights.ok()) return Refused(weights.status(), name);
  const int64_t rows = weights->rows(), cols = weights->cols();
  return AddRows(*std::move(weights), rows, cols, name);
}

absl::Status Linear::AddRows(std::variant<cpu::PackedIntWeights, cpu::DenseWeights> weights,
                             int64_t rows, int64_t cols, std::string_view name) {
  if (!parts_.empty() && cols != cols_) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, name,
                  absl::StrCat("has ", cols, " columns, its neighbours have ", cols_));
  }
  cols_ = cols;
  parts_.push_back({rows_, std::move(weights)});
  rows_ += rows;
  return absl::OkStatus();
}

int64_t Linear::bytes() const {
  int64_t sum = 0;
  for (const Part& part : parts_) {
    sum += std::visit([](const auto& weights) { return weights.bytes(); }, part.weights);
  }
  return sum;
}

void Linear::Apply(const cpu::MatmulArgs& args, Numerics numerics, ThreadPool& pool) const {
  for (const Part& part : parts_) {
    cpu::MatmulArgs rows = args;
    rows.y += part.first_row;
    if (const auto* dense = std::get_if<cpu::DenseWeights>(&part.weights)) {
      cpu::MatmulDense(*dense, rows, pool);
    } else if (numerics == Numerics::kReference) {
      cpu::MatmulExact(std::get<cpu::PackedIntWeights>(part.weights), rows, pool);
    } else {
      cpu::MatmulInt8(std::get<cpu::PackedIntWeights>(part.weights), rows, pool);
    }
  }
}

bool Linear::dense() const {
  return parts_.size() == 1 && std::holds_alternative<cpu::DenseWeights>(parts_[0].weights);
}

void Linear::ReadDenseRow(int64_t row, float* out) const {
  const auto& weights = std::get<cpu::DenseWeights>(parts_[0].weights);
  const int64_t first = row / 16 * 16 * cols_ + row % 16;
  for (int64_t c = 0; c < cols_; ++c) {
    const int64_t at = first + c * 16;
    if (weights.type() == FloatType::kF32) {
      out[c] = reinterpret_cast<const float*>(weights.data())[at];
    } else {
      const uint16_t bits = reinterpret_cast<const uint16_t*>(weights.data())[at];
      out[c] = weights.type() == FloatType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
    }
  }
}

int64_t LinearBytes(const StoredFormat& format, int64_t rows, int64_t cols) {
  const int64_t padded_rows = RoundUp(rows, 16);
  if (format.kind == StoredFormat::Kind::kDense) {
    return padded_rows * cols * FloatTypeBytes(KernelType(format.dtype));
  }
  const int64_t groups = (cols + format.group - 1) / format.group;
  const int64_t per_group = 2 + (format.symmetric ? 0 : 1);
  return padded_rows * (RoundUp(cols, 64) * format.bits / 8 + groups * per_group);
}

}  // namespace babai
