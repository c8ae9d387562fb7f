#include "server/engine/cuda_linear.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/repack.h"
#include "kernels/formats/float16.h"
#include "server/engine/cuda_status.h"
#include "server/engine/linear_layout.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kElement = 2;  // bytes of a dense weight or an activation

// What a matrix becomes, the shape it then has and what will stand around it.
struct Execution {
  enum class Kind { kIntegers, kTables, kFloats /* as stored */, kDecoded };
  Kind kind = Kind::kDecoded;
  int64_t rows = 0, cols = 0;
  LinearLayout layout;  // of packed() ones only, and all below
  cuda::PackedShape shape;
  Rotation in, out;
  bool factors = false;

  bool packed() const { return kind == Kind::kIntegers || kind == Kind::kTables; }
  bool bare() const {
    return kind == Kind::kIntegers && in.identity() && out.identity() && !factors &&
           layout.sparse_entries == 0;
  }
};

// Whether the two can be one product.
bool Stackable(const Execution& a, const Execution& b) {
  const bool alike = a.kind == b.kind || (!a.packed() && !b.packed());
  if (!alike || a.cols != b.cols) return false;
  if (!a.packed()) return true;
  const bool same = a.shape.bits == b.shape.bits && a.shape.group == b.shape.group &&
                    a.shape.asymmetric == b.shape.asymmetric && a.in == b.in;
  return same && a.out.identity() && b.out.identity() && !a.factors && !b.factors;
}

// The packed shape of integers in this layout, where the kernels have one.
std::optional<cuda::PackedShape> IntegerShapeOf(const PackedLinearView& w,
                                                const LinearLayout& layout) {
  PackedIntView like;
  if (const auto* stored = std::get_if<PackedIntView>(&w.base)) {
    like = *stored;
  } else {
    like.rows = w.rows(), like.cols = w.cols(), like.group = layout.group, like.bits = layout.bits;
  }
  const absl::StatusOr<cuda::PackedShape> shape = cuda::GpuShape(like);
  if (!shape.ok()) return std::nullopt;
  return *shape;
}

absl::StatusOr<Execution> ExecutionOf(const PackedModel& model, const std::string& name) {
  Execution execution;
  if (const StoredFormat format = model.Format(name); !format.packed()) {
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
  const absl::StatusOr<LinearLayout> layout = LayoutOf(*view);
  if (!layout.ok()) return DeviceRefusal(layout.status(), name);
  if (!CudaSurroundings::Takes(view->in, view->out, view->rows(), view->cols())) return execution;
  const auto* table = std::get_if<PackedTableView>(&view->base);
  const bool tables = layout->dense && table != nullptr;
  const auto shape = tables ? TableShapeOf(*table) : IntegerShapeOf(*view, *layout);
  if (!shape) return execution;
  execution.kind = tables ? Execution::Kind::kTables : Execution::Kind::kIntegers;
  execution.layout = *layout, execution.shape = *shape;
  execution.in = view->in, execution.out = view->out;
  execution.factors =
      !view->col_scales.empty() || std::holds_alternative<EntropyCodedView>(view->base);
  if (tables && view->sparse) execution.layout.sparse_entries = view->sparse->entries();
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
  return pair.size() == 2 && Stackable(pair[0], pair[1]) && pair[0].bare() && pair[1].bare() &&
         pair[0].rows == pair[1].rows && pair[0].rows % (cuda::kTileRows / 2) == 0;
}

// The steps of F6's columns may be anything, and so would be what 16-bit activations become times
// these. A power of two brings them near one, on their root mean square; integers and sparse values
// get it back, where their scales can take it exactly.
void Balance(IntegerLinear& linear) {
  double squares = 0;
  for (const float f : linear.col_factors) squares += double{f} * f;
  const double mean = std::sqrt(squares / static_cast<double>(linear.col_factors.size()));
  if (!(mean > 0)) return;
  const float up = std::exp2(-std::round(std::log2(static_cast<float>(mean)))), down = 1 / up;
  std::vector<uint16_t> scales;
  for (const uint16_t scale : linear.owned.scales) {
    const float product = HalfToFloat(scale) * down;
    scales.push_back(FloatToHalf(product));
    if (HalfToFloat(scales.back()) != product) return;
  }
  linear.owned.scales = std::move(scales);
  linear.integers = linear.owned.view();
  for (float& f : linear.col_factors) f *= up;
  linear.sparse.Scale(down);
}

// What a packed matrix is loaded from; the views look at what stands beside them.
struct Source {
  TableCodes tables;     // of kTables
  IntegerLinear around;  // integers of the others; of all: sparse values and factors
  PackedIntView codes;
};

absl::StatusOr<Source> SourceOf(const PackedLinearView& w, const Execution& execution) {
  Source source;
  if (execution.kind == Execution::Kind::kTables) {
    absl::StatusOr<TableCodes> tables = MakeTableCodes(std::get<PackedTableView>(w.base));
    if (!tables.ok()) return tables.status();
    source.tables = *std::move(tables), source.codes = source.tables.pairs;
    if (w.sparse) source.around.sparse = SparseOf(*w.sparse);
    for (const uint16_t f : w.col_scales) source.around.col_factors.push_back(HalfToFloat(f));
    return source;
  }
  absl::StatusOr<IntegerLinear> integers = MakeIntegers(w, execution.layout);
  if (!integers.ok()) return integers.status();
  source.around = *std::move(integers);
  if (std::holds_alternative<EntropyCodedView>(w.base)) Balance(source.around);
  source.codes = source.around.integers;
  return source;
}

absl::Status LoadTables(absl::Span<const Source> sources, int64_t rows, CudaLoader& loader,
                        cuda::Buffer* out) {
  absl::StatusOr<cuda::Buffer> tables = cuda::Buffer::OnDevice(TableBytes(rows));
  if (!tables.ok()) return tables.status();
  *out = *std::move(tables);
  uint16_t* to = out->data<uint16_t>();
  for (const Source& source : sources) {
    const std::vector<uint16_t>& values = source.tables.tables;
    const absl::Status sent = loader.Copy(values.data(), values.size() * sizeof(uint16_t), to);
    if (!sent.ok()) return sent;
    to += values.size();
  }
  return absl::OkStatus();
}

absl::Status LoadPacked(const PackedModel& model, absl::Span<const std::string> names,
                        absl::Span<const Execution> executions, CudaLinear::Order order,
                        CudaLoader& loader, CudaLinear::Part* part) {
  std::vector<Source> sources;
  sources.reserve(names.size());
  std::vector<PackedIntView> views;
  CudaSurroundings::Parts around;
  around.in = executions[0].in, around.out = executions[0].out, around.cols = executions[0].cols;
  for (size_t i = 0; i < names.size(); ++i) {
    const absl::StatusOr<PackedLinearView> view = model.LinearTensor(names[i]);
    if (!view.ok()) return view.status();
    absl::StatusOr<Source> source = SourceOf(*view, executions[i]);
    if (!source.ok()) return source.status();
    sources.push_back(*std::move(source));
    views.push_back(sources.back().codes);
    around.sparse.push_back(&sources.back().around.sparse);
    around.rows.push_back(executions[i].rows);
  }
  around.factors = sources[0].around.col_factors;
  if (executions[0].kind == Execution::Kind::kIntegers) {
    int exponent = cuda::ScaleExponent(views[0].scales);
    for (const PackedIntView& w : views) {
      exponent = std::max(exponent, cuda::ScaleExponent(w.scales));
    }
    part->shape.scale_exponent = exponent;
  }
  if (order == CudaLinear::Order::kInEights) views = InEights(views[0], views[1]);
  absl::StatusOr<cuda::Buffer> weights = cuda::Buffer::OnDevice(part->shape.bytes());
  if (!weights.ok()) return weights.status();
  part->weights = *std::move(weights);
  absl::Status loaded = loader.Repack(views, part->shape, part->weights.data());
  if (loaded.ok() && executions[0].kind == Execution::Kind::kTables) {
    loaded = LoadTables(sources, part->rows, loader, &part->tables);
  }
  if (!loaded.ok()) return loaded;
  absl::StatusOr<CudaSurroundings> surroundings = CudaSurroundings::Load(around, loader);
  if (!surroundings.ok()) return surroundings.status();
  part->around = *std::move(surroundings);
  return absl::OkStatus();
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

absl::Status LoadDense(const PackedModel& model, absl::Span<const std::string> names,
                       absl::Span<const Execution> executions, cuda::Dtype dtype,
                       CudaLoader& loader, CudaLinear::Part* part) {
  int64_t values = 0;
  for (const Execution& e : executions) values += e.rows * e.cols;
  absl::StatusOr<cuda::Buffer> weights = cuda::Buffer::OnDevice(values * kElement);
  if (!weights.ok()) return weights.status();
  part->weights = *std::move(weights);
  uint16_t* to = part->weights.data<uint16_t>();
  for (size_t i = 0; i < names.size(); ++i) {
    const absl::Status loaded = LoadFloats(model, names[i], executions[i], to, dtype, loader);
    if (!loaded.ok()) return loaded;
    to += executions[i].rows * executions[i].cols;
  }
  return absl::OkStatus();
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
    const absl::Status loaded = part.packed ? LoadPacked(model, stack, how, order, loader, &part)
                                            : LoadDense(model, stack, how, dtype, loader, &part);
    if (!loaded.ok()) return DeviceRefusal(loaded, names[begin]);
    parts.push_back(std::move(part));
  }
  return CudaLinear(std::move(parts), executions[0].cols, order);
}

int64_t CudaLinear::bytes() const {
  int64_t sum = 0;
  for (const Part& part : parts_)
    sum += part.weights.bytes() + part.tables.bytes() + part.around.bytes();
  return sum;
}

CudaGemmNeeds CudaLinear::needs() const {
  CudaGemmNeeds needs;
  for (const Part& part : parts_) {
    const bool tables = part.tables.bytes() > 0;
    needs.Include({!part.packed || tables, tables, part.around.needs()});
  }
  return needs;
}

absl::Status CudaLinear::Run(const void* x, int m, void* y, cuda::Dtype dtype,
                             const CudaGemms& gemms, const cuda::Queue& queue,
                             const How& how) const {
  for (const Part& part : parts_) {
    uint16_t* out = static_cast<uint16_t*>(y) + m * part.first_row;
    if (!part.packed) {
      const absl::Status done =
          gemms.dense->Run({x, part.weights.data(), out, m, static_cast<int>(part.rows),
                            static_cast<int>(cols_), dtype});
      if (!done.ok()) return done;
      continue;
    }
    const absl::StatusOr<const void*> inner = part.around.Before(x, m, dtype, gemms.scratch, queue);
    if (!inner.ok()) return inner.status();
    absl::Status done;
    if (part.tables.bytes() > 0) {
      const cuda::TableWeights weights = {part.weights.data<uint8_t>(),
                                          part.tables.data<uint16_t>(), part.shape};
      done = TableProduct({*inner, out, weights, m, dtype}, gemms.dense.get(),
                          gemms.scratch.decoded, queue);
    } else {
      done = cuda::PackedGemm(
          {*inner, part.weights.data(), out, gemms.packed_workspace.data(), part.shape, m, dtype,
           queue.early_start, how.ends, how.turn, how.spared_bytes},
          gemms.limits, queue.stream);
    }
    if (done.ok()) done = part.around.After(*inner, out, m, dtype, gemms.scratch, queue);
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
  const Execution& e = *execution;
  if (!e.packed()) return CudaLinearPlan{e.rows * e.cols * kElement, {true, false, {}}};
  const bool tables = e.kind == Execution::Kind::kTables;
  const bool turns = e.factors || !e.in.identity();
  return CudaLinearPlan{
      e.shape.bytes() + (tables ? TableBytes(e.rows) : 0) +
          CudaSurroundings::Bytes(e.in, e.out, e.factors, e.layout.sparse_entries, e.rows, e.cols),
      {tables, tables, {turns ? e.cols : 0, e.layout.sparse_entries > 0 ? e.cols : 0}}};
}

}  // namespace babai
