#include "server/engine/cuda_linear.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/repack.h"
#include "server/engine/cuda_status.h"
#include "server/engine/linear_layout.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kElement = 2;  // bytes of a dense weight or an activation

// What a matrix becomes, and the shape it then has.
struct Execution {
  enum class Kind {
    kStored,    // packed, from F1 as stored
    kIntegers,  // packed, from the integers that a table stands for
    kFloats,    // dense, from floats as stored
    kDecoded    // dense, decoded
  } kind = Kind::kDecoded;
  cuda::PackedShape shape;  // packed only
  int64_t rows = 0, cols = 0;

  bool packed() const { return kind == Kind::kStored || kind == Kind::kIntegers; }
};

// Whether the two can be one product.
bool Stackable(const Execution& a, const Execution& b) {
  if (a.packed() != b.packed() || a.cols != b.cols) return false;
  return !a.packed() || (a.shape.bits == b.shape.bits && a.shape.group == b.shape.group &&
                         a.shape.asymmetric == b.shape.asymmetric);
}

// The packed shape of integers in this layout, where the kernels have one and nothing stands around
// them.
std::optional<cuda::PackedShape> IntegerShape(const PackedLinearView& w,
                                              const LinearLayout& layout) {
  const bool bare = std::holds_alternative<PackedTableView>(w.base) && !w.sparse &&
                    w.col_scales.empty() && w.in.identity() && w.out.identity();
  if (layout.dense || !bare) return std::nullopt;
  PackedIntView like;
  like.rows = w.rows(), like.cols = w.cols(), like.group = layout.group, like.bits = layout.bits;
  const absl::StatusOr<cuda::PackedShape> shape = cuda::GpuShape(like);
  if (!shape.ok()) return std::nullopt;
  return *shape;
}

absl::StatusOr<Execution> ExecutionOf(const PackedModel& model, const std::string& name) {
  const StoredFormat format = model.Format(name);
  Execution execution;
  if (!format.packed()) {
    std::vector<int64_t> shape;
    const auto bytes = model.DenseTensor(name, &shape);
    if (!bytes.ok()) return bytes.status();
    if (shape.size() != 2) {
      return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, name,
                    "is not a matrix");
    }
    execution.kind = Execution::Kind::kFloats;
    execution.rows = shape[0], execution.cols = shape[1];
    return execution;
  }
  const absl::StatusOr<PackedLinearView> view = model.LinearTensor(name);
  if (!view.ok()) return view.status();
  execution.rows = view->rows(), execution.cols = view->cols();
  if (format.plain()) {
    const auto shape = cuda::GpuShape(std::get<PackedIntView>(view->base));
    if (shape.ok()) execution.kind = Execution::Kind::kStored, execution.shape = *shape;
    return execution;
  }
  const absl::StatusOr<LinearLayout> layout = LayoutOf(*view);
  if (!layout.ok()) return DeviceRefusal(layout.status(), name);
  if (const auto shape = IntegerShape(*view, *layout)) {
    execution.kind = Execution::Kind::kIntegers, execution.shape = *shape;
  }
  return execution;
}

cuda::StoredFloat StoredFloatOf(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return cuda::StoredFloat::kFp16;
    case DType::kBF16:
      return cuda::StoredFloat::kBf16;
    default:
      return cuda::StoredFloat::kFp32;
  }
}

PackedIntView Rows(const PackedIntView& w, int64_t first, int64_t count) {
  const auto part = [&](const auto& all) {
    const int64_t each = static_cast<int64_t>(all.size()) / w.rows;
    return all.subspan(first * each, count * each);
  };
  PackedIntView rows = w;
  rows.codes = part(w.codes), rows.scales = part(w.scales), rows.zeros = part(w.zeros);
  rows.rows = count;
  return rows;
}

// Eight rows of each in turn.
std::vector<PackedIntView> InEights(const PackedIntView& a, const PackedIntView& b) {
  constexpr int64_t kEight = cuda::kTileRows / 2;
  std::vector<PackedIntView> mixed;
  mixed.reserve(a.rows / kEight * 2);
  for (int64_t r = 0; r < a.rows; r += kEight) {
    mixed.push_back(Rows(a, r, kEight));
    mixed.push_back(Rows(b, r, kEight));
  }
  return mixed;
}

bool CanBeInEights(absl::Span<const Execution> pair) {
  return pair.size() == 2 && Stackable(pair[0], pair[1]) && pair[0].packed() &&
         pair[0].rows == pair[1].rows && pair[0].rows % (cuda::kTileRows / 2) == 0;
}

absl::StatusOr<cuda::Buffer> LoadPacked(const PackedModel& model,
                                        absl::Span<const std::string> names,
                                        absl::Span<const Execution> executions,
                                        const cuda::PackedShape& shape, CudaLinear::Order order,
                                        CudaLoader& loader) {
  std::vector<PackedInt> made;  // keeps what the views below look at
  made.reserve(names.size());
  std::vector<PackedIntView> views;
  for (size_t i = 0; i < names.size(); ++i) {
    const absl::StatusOr<PackedLinearView> view = model.LinearTensor(names[i]);
    if (!view.ok()) return view.status();
    if (executions[i].kind == Execution::Kind::kStored) {
      views.push_back(std::get<PackedIntView>(view->base));
      continue;
    }
    const absl::StatusOr<LinearLayout> layout = LayoutOf(*view);
    if (!layout.ok()) return layout.status();
    absl::StatusOr<IntegerLinear> integers = MakeIntegers(*view, *layout);
    if (!integers.ok()) return integers.status();
    made.push_back(std::move(integers->owned));
    views.push_back(made.back().view());
  }
  if (order == CudaLinear::Order::kInEights) views = InEights(views[0], views[1]);
  absl::StatusOr<cuda::Buffer> weights = cuda::Buffer::OnDevice(shape.bytes());
  if (!weights.ok()) return weights;
  const absl::Status repacked = loader.Repack(views, shape, weights->data());
  if (!repacked.ok()) return repacked;
  return weights;
}

absl::Status LoadFloats(const PackedModel& model, const std::string& name,
                        const Execution& execution, uint16_t* to, cuda::Dtype dtype,
                        CudaLoader& loader) {
  const int64_t count = execution.rows * execution.cols;
  if (execution.kind == Execution::Kind::kFloats) {
    std::vector<int64_t> shape;
    const auto bytes = model.DenseTensor(name, &shape);
    if (!bytes.ok()) return bytes.status();
    return loader.Convert(bytes->data(), StoredFloatOf(model.Format(name).dtype), count, to, dtype);
  }
  const absl::StatusOr<PackedLinearView> view = model.LinearTensor(name);
  if (!view.ok()) return view.status();
  const absl::StatusOr<std::vector<uint16_t>> halves = MakeDense(*view);
  if (!halves.ok()) return halves.status();
  return loader.Convert(halves->data(), cuda::StoredFloat::kFp16, count, to, dtype);
}

absl::StatusOr<cuda::Buffer> LoadDense(const PackedModel& model,
                                       absl::Span<const std::string> names,
                                       absl::Span<const Execution> executions, cuda::Dtype dtype,
                                       CudaLoader& loader) {
  int64_t values = 0;
  for (const Execution& e : executions) values += e.rows * e.cols;
  absl::StatusOr<cuda::Buffer> weights = cuda::Buffer::OnDevice(values * kElement);
  if (!weights.ok()) return weights;
  uint16_t* to = weights->data<uint16_t>();
  for (size_t i = 0; i < names.size(); ++i) {
    const absl::Status loaded = LoadFloats(model, names[i], executions[i], to, dtype, loader);
    if (!loaded.ok()) return loaded;
    to += executions[i].rows * executions[i].cols;
  }
  return weights;
}

absl::Status CheckColumns(absl::Span<const Execution> executions, const std::string& name) {
  for (const Execution& e : executions) {
    if (e.cols == executions[0].cols) continue;
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, name,
                  absl::StrCat("its stack has ", executions[0].cols, " and ", e.cols, " columns"));
  }
  return absl::OkStatus();
}

}  // namespace

CudaLinear::CudaLinear(std::vector<Part> parts, int64_t cols, Order order)
    : parts_(std::move(parts)), cols_(cols), order_(order) {
  for (Part& part : parts_) part.first_row = rows_, rows_ += part.rows;
}

absl::StatusOr<CudaLinear> CudaLinear::Load(const PackedModel& model,
                                            absl::Span<const std::string> names, cuda::Dtype dtype,
                                            CudaLoader& loader, Order wished) {
  std::vector<Execution> executions;
  for (const std::string& name : names) {
    const absl::StatusOr<Execution> execution = ExecutionOf(model, name);
    if (!execution.ok()) return execution.status();
    executions.push_back(*execution);
  }
  const absl::Span<const Execution> all(executions);
  if (absl::Status same = CheckColumns(all, names[0]); !same.ok()) return same;
  const Order order = CanBeInEights(all) ? wished : Order::kStacked;
  std::vector<Part> parts;
  for (size_t begin = 0, end; begin < names.size(); begin = end) {
    end = begin + 1;
    while (end < names.size() && Stackable(all[begin], all[end])) ++end;
    Part part;
    for (size_t i = begin; i < end; ++i) part.rows += all[i].rows;
    part.packed = all[begin].packed();
    part.shape = all[begin].shape, part.shape.n = static_cast<int>(part.rows);
    const auto stack = names.subspan(begin, end - begin);
    const auto how = all.subspan(begin, end - begin);
    absl::StatusOr<cuda::Buffer> weights =
        part.packed ? LoadPacked(model, stack, how, part.shape, order, loader)
                    : LoadDense(model, stack, how, dtype, loader);
    if (!weights.ok()) return DeviceRefusal(weights.status(), names[begin]);
    part.weights = *std::move(weights);
    parts.push_back(std::move(part));
  }
  return CudaLinear(std::move(parts), executions[0].cols, order);
}

int64_t CudaLinear::bytes() const {
  int64_t sum = 0;
  for (const Part& part : parts_) sum += part.weights.bytes();
  return sum;
}

bool CudaLinear::needs_dense() const {
  return std::any_of(parts_.begin(), parts_.end(), [](const Part& part) { return !part.packed; });
}

absl::Status CudaLinear::Run(const void* x, int m, void* y, cuda::Dtype dtype,
                             const CudaGemms& gemms, const cuda::Queue& queue,
                             const How& how) const {
  for (const Part& part : parts_) {
    uint16_t* out = static_cast<uint16_t*>(y) + m * part.first_row;
    const absl::Status done =
        part.packed
            ? cuda::PackedGemm({x, part.weights.data(), out, gemms.packed_workspace.data(),
                                part.shape, m, dtype, queue.early_start, how.ends, how.turn},
                               gemms.limits, queue.stream)
            : gemms.dense->Run({x, part.weights.data(), out, m, static_cast<int>(part.rows),
                                static_cast<int>(cols_), dtype});
    if (!done.ok()) return done;
  }
  return absl::OkStatus();
}

cuda::RowsOf CudaLinear::Output(const void* y, int m, int64_t first_row) const {
  const Part* part = &parts_[0];
  while (first_row >= part->first_row + part->rows) ++part;
  const auto* values = static_cast<const uint16_t*>(y);
  return {values + m * part->first_row + (first_row - part->first_row), part->rows};
}

absl::StatusOr<CudaLinearPlan> PlanCudaLinear(const PackedModel& model, const std::string& name) {
  const absl::StatusOr<Execution> execution = ExecutionOf(model, name);
  if (!execution.ok()) return execution.status();
  if (execution->packed()) return CudaLinearPlan{execution->shape.bytes(), false};
  return CudaLinearPlan{execution->rows * execution->cols * kElement, true};
}

}  // namespace babai
