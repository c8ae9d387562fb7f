#include "server/engine/linear.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// A kernel's or a format's own refusal, as one a caller can act on.
absl::Status Refused(const absl::Status& status, std::string_view name) {
  const std::string message(status.message());
  if (absl::IsDataLoss(status)) {
    return Refuse(status.code(), reason::kInvalidModelFile, name, message);
  }
  if (absl::IsResourceExhausted(status)) {
    return Refuse(status.code(), reason::kOutOfMemory, name, message);
  }
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, name, message);
}

// Whether the two can be one product.
bool Stackable(const StoredFormat& a, const StoredFormat& b) {
  if (a.kind != b.kind) return false;
  if (a.kind == StoredFormat::Kind::kDense) return a.dtype == b.dtype;
  return a.plain() && b.plain() && a.bits == b.bits && a.group == b.group &&
         a.symmetric == b.symmetric;
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

// Prepared inputs stand in front of the kernels' scratch, in whole cache lines.
int64_t PreparedBytes(int64_t m, int64_t k) { return RoundUp(m * k * 4, 64); }

// Below this many tokens the caller works alone: cheaper than a meeting of threads.
constexpr int64_t kSerialTokens = 8;

void ForTokens(int64_t m, ThreadPool& pool, absl::FunctionRef<void(int64_t, int64_t)> fn) {
  if (m <= kSerialTokens) return fn(0, m);
  pool.ParallelFor(m, 1, fn);
}

void Multiply(const std::vector<float>& factors, float* x) {
  for (size_t i = 0; i < factors.size(); ++i) x[i] *= factors[i];
}

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
    end = begin + 1;
    if (format.packed() && !format.plain()) {
      const absl::StatusOr<PackedLinearView> view = model.LinearTensor(names[begin]);
      if (!view.ok()) return view.status();
      const absl::Status added = linear.AddLinear(*view, names[begin]);
      if (!added.ok()) return added;
      continue;
    }
    while (end < names.size() && Stackable(model.Format(names[end]), format)) ++end;
    const absl::Status added = linear.AddStack(model, names.subspan(begin, end - begin));
    if (!added.ok()) return added;
  }
  return linear;
}

absl::Status Linear::AddStack(const PackedModel& model, absl::Span<const std::string> names) {
  std::vector<PackedIntView> ints;
  std::vector<cpu::DenseView> floats;
  const bool packed = model.Format(names[0]).packed();
  for (const std::string& name : names) {
    if (packed) {
      const absl::StatusOr<PackedIntView> view = model.PackedIntTensor(name);
      if (!view.ok()) return view.status();
      ints.push_back(*view);
    } else {
      const absl::StatusOr<cpu::DenseView> view = DenseViewOf(model, name);
      if (!view.ok()) return view.status();
      floats.push_back(*view);
    }
  }
  return packed ? AddPacked(ints, names[0]) : AddDense(floats, names[0]);
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
  return AddPart({.rows = rows, .weights = *std::move(weights)}, cols, name);
}

absl::Status Linear::AddDense(absl::Span<const cpu::DenseView> views, std::string_view name) {
  absl::StatusOr<cpu::DenseWeights> weights = cpu::DenseWeights::Make(views);
  if (!weights.ok()) return Refused(weights.status(), name);
  const int64_t rows = weights->rows(), cols = weights->cols();
  return AddPart({.rows = rows, .weights = *std::move(weights)}, cols, name);
}

absl::Status Linear::AddLinear(const PackedLinearView& w, std::string_view name) {
  const absl::StatusOr<LinearLayout> layout = LayoutOf(w);
  if (!layout.ok()) return Refused(layout.status(), name);
  if (!layout->dense) return AddIntegers(w, *layout, name);
  const absl::StatusOr<std::vector<uint16_t>> halves = MakeDense(w);
  if (!halves.ok()) return Refused(halves.status(), name);
  const cpu::DenseView view = {halves->data(), FloatType::kF16, w.rows(), w.cols()};
  return AddDense({view}, name);
}

absl::Status Linear::AddIntegers(const PackedLinearView& w, const LinearLayout& layout,
                                 std::string_view name) {
  absl::StatusOr<IntegerLinear> made = MakeIntegers(w, layout);
  if (!made.ok()) return Refused(made.status(), name);
  absl::StatusOr<cpu::PackedIntWeights> weights = cpu::PackedIntWeights::Make({made->integers});
  if (!weights.ok()) return Refused(weights.status(), name);
  Part part = {.rows = w.rows(), .weights = *std::move(weights)};
  if (!made->sparse.empty()) part.sparse = std::move(made->sparse);
  part.prologue = PrologueOf(w.in, std::move(made->col_factors), w.cols());
  part.out_block = w.out.block;
  if (!w.out.identity()) part.out_signs = RotationScales(w.out, w.rows());
  return AddPart(std::move(part), w.cols(), name);
}

absl::Status Linear::AddPart(Part part, int64_t cols, std::string_view name) {
  if (!parts_.empty() && cols != cols_) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, name,
                  absl::StrCat("has ", cols, " columns, its neighbours have ", cols_));
  }
  cols_ = cols;
  part.first_row = rows_;
  rows_ += part.rows;
  parts_.push_back(std::move(part));
  return absl::OkStatus();
}

int Linear::PrologueOf(const Rotation& rotation, std::vector<float> factors, int64_t cols) {
  if (rotation.identity() && factors.empty()) return -1;
  Prologue prologue = {rotation, {}, std::move(factors)};
  const auto known = std::find(prologues_.begin(), prologues_.end(), prologue);
  if (known != prologues_.end()) return static_cast<int>(known - prologues_.begin());
  if (!rotation.identity()) prologue.signs = RotationScales(rotation, cols);
  prologues_.push_back(std::move(prologue));
  return static_cast<int>(prologues_.size()) - 1;
}

int64_t Linear::bytes() const {
  int64_t sum = 0;
  for (const Part& part : parts_) {
    sum += std::visit([](const auto& weights) { return weights.bytes(); }, part.weights);
    if (!part.sparse.empty()) sum += part.sparse.bytes();
    sum += part.out_signs.size() * sizeof(float);
  }
  for (const Prologue& prologue : prologues_) {
    sum += (prologue.signs.size() + prologue.factors.size()) * sizeof(float);
  }
  return sum;
}

void Linear::Apply(const cpu::MatmulArgs& args, Numerics numerics, ThreadPool& pool) const {
  auto* prepared = reinterpret_cast<float*>(args.scratch);
  int now = -1;  // the prologue that `prepared` holds
  for (const Part& part : parts_) {
    cpu::MatmulArgs rows = args;
    rows.y += part.first_row;
    if (part.prologue >= 0) {
      if (part.prologue != now) Prepare(prologues_[part.prologue], args, prepared, pool);
      now = part.prologue;
      rows.x = prepared;
      rows.ldx = cols_;
    }
    rows.scratch += PreparedBytes(args.m, cols_);
    ApplyPart(part, rows, numerics, pool);
  }
}

void Linear::Prepare(const Prologue& prologue, const cpu::MatmulArgs& args, float* out,
                     ThreadPool& pool) const {
  ForTokens(args.m, pool, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* x = out + t * cols_;
      std::copy_n(args.x + t * args.ldx, cols_, x);
      Multiply(prologue.signs, x);
      if (!prologue.rotation.identity()) Hadamard(x, cols_, prologue.rotation.block);
      Multiply(prologue.factors, x);
    }
  });
}

void Linear::ApplyPart(const Part& part, const cpu::MatmulArgs& args, Numerics numerics,
                       ThreadPool& pool) {
  if (const auto* dense = std::get_if<cpu::DenseWeights>(&part.weights)) {
    cpu::MatmulDense(*dense, args, pool);
  } else if (numerics == Numerics::kReference) {
    cpu::MatmulExact(std::get<cpu::PackedIntWeights>(part.weights), args, pool);
  } else {
    cpu::MatmulInt8(std::get<cpu::PackedIntWeights>(part.weights), args, pool);
  }
  if (!part.sparse.empty()) cpu::AddMatmulSparse(part.sparse, args, pool);
  if (part.out_block == 1) return;
  ForTokens(args.m, pool, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* y = args.y + t * args.ldy;
      Hadamard(y, part.rows, part.out_block);
      Multiply(part.out_signs, y);
    }
  });
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

int64_t LinearScratchBytes(int64_t m, int64_t k) {
  return PreparedBytes(m, k) + cpu::MatmulScratchBytes(m, k);
}

absl::StatusOr<int64_t> LinearBytes(const PackedModel& model, const std::string& name) {
  const StoredFormat format = model.Format(name);
  if (format.packed()) {
    const absl::StatusOr<PackedLinearView> view = model.LinearTensor(name);
    if (!view.ok()) return view.status();
    const absl::StatusOr<LinearLayout> layout = LayoutOf(*view);
    if (!layout.ok()) return Refused(layout.status(), name);
    return LayoutBytes(*layout, *view);
  }
  std::vector<int64_t> shape;
  const auto bytes = model.DenseTensor(name, &shape);
  if (!bytes.ok()) return bytes.status();
  const int64_t rows = shape.empty() || shape[0] == 0 ? 1 : shape[0];
  return static_cast<int64_t>(bytes->size()) / rows * RoundUp(rows, 16);
}

}  // namespace babai
