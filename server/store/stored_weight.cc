#include "server/store/stored_weight.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace babai {
namespace {

// Takes the parts of one weight; the first one that is wrong is kept.
class Parts {
 public:
  Parts(const std::string& name, const StoredFormat& format, StoredTensors& tensors)
      : name_(name), format_(format), tensors_(tensors) {}

  const StoredFormat& format() const { return format_; }
  int64_t rows() const { return format_.shape[0]; }
  int64_t cols() const { return format_.shape[1]; }
  const absl::Status& status() const { return status_; }

  const MappedTensor* Take(const std::string& suffix, std::string_view type, int64_t element) {
    const auto it = tensors_.find(name_ + suffix);
    if (it == tensors_.end()) return Fail(name_ + suffix + " is in none of the files");
    MappedTensor& tensor = it->second;
    if (std::exchange(tensor.taken, true)) return Fail(name_ + suffix + " is used twice");
    if (tensor.type != type || reinterpret_cast<uintptr_t>(tensor.bytes.data()) % element != 0) {
      return Fail(name_ + suffix + " is not stored as the manifest says");
    }
    return &tensor;
  }

  absl::Span<const uint8_t> Bytes(const std::string& suffix) {
    return Values<uint8_t>(suffix, "U8");
  }
  absl::Span<const uint16_t> Halves(const std::string& suffix) {
    return Values<uint16_t>(suffix, "F16");
  }
  absl::Span<const uint16_t> Shorts(const std::string& suffix) {
    return Values<uint16_t>(suffix, "U16");
  }
  absl::Span<const uint32_t> Words(const std::string& suffix) {
    return Values<uint32_t>(suffix, "U32");
  }

  // What a format's own check says of the parts.
  template <class View>
  View Checked(const absl::StatusOr<View>& view) {
    if (view.ok()) return *view;
    Fail(absl::StrCat(name_, ": ", view.status().message()));
    return {};
  }

 private:
  const MappedTensor* Fail(std::string message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(message);
    return nullptr;
  }

  template <class T>
  absl::Span<const T> Values(const std::string& suffix, std::string_view type) {
    const MappedTensor* tensor = Take(suffix, type, sizeof(T));
    if (tensor == nullptr) return {};
    return {reinterpret_cast<const T*>(tensor->bytes.data()), tensor->bytes.size() / sizeof(T)};
  }

  const std::string& name_;
  const StoredFormat& format_;
  StoredTensors& tensors_;
  absl::Status status_;
};

PackedIntView TakePackedInt(Parts& parts) {
  const StoredFormat& f = parts.format();
  const auto codes = parts.Bytes(".codes");
  const auto scales = parts.Halves(".scales");
  const auto zeros = f.symmetric ? absl::Span<const uint8_t>() : parts.Bytes(".zeros");
  if (!f.symmetric && zeros.empty()) {
    return parts.Checked<PackedIntView>(absl::InvalidArgumentError("zeros holds 0 values"));
  }
  return parts.Checked(
      MakePackedIntView(codes, scales, zeros, parts.rows(), parts.cols(), f.group, f.bits));
}

PackedTableView TakePackedTable(Parts& parts) {
  const StoredFormat& f = parts.format();
  const auto codes = parts.Bytes(".codes");
  const auto table = parts.Halves(".table");
  absl::Span<const uint16_t> scales;
  if (f.table_kind == TableKind::kShared) scales = parts.Halves(".scales");
  return parts.Checked(MakePackedTableView(codes, scales, table, parts.rows(), parts.cols(),
                                           f.group, f.bits, f.table_kind));
}

EntropyCodedView TakeEntropyCoded(Parts& parts) {
  EntropyCodedView view;
  view.model = parts.Bytes(".model");
  view.strip_begin = parts.Words(".strips");
  view.stream = parts.Bytes(".stream");
  view.row_scales = parts.Halves(".row_scales");
  view.col_scales = parts.Halves(".col_scales");
  view.rows = parts.rows();
  view.cols = parts.cols();
  return parts.Checked(MakeEntropyCodedView(view));
}

SparseRowsView TakeSparseRows(Parts& parts) {
  const auto begins = parts.Words(".sparse_rows");
  const auto columns = parts.Shorts(".sparse_columns");
  const auto values = parts.Halves(".sparse_values");
  return parts.Checked(MakeSparseRowsView(begins, columns, values, parts.rows(), parts.cols()));
}

PackedLinearView TakeLinear(Parts& parts) {
  PackedLinearView view;
  switch (parts.format().kind) {
    case StoredFormat::Kind::kPackedTable:
      view.base = TakePackedTable(parts);
      break;
    case StoredFormat::Kind::kEntropyCoded:
      view.base = TakeEntropyCoded(parts);
      break;
    default:
      view.base = TakePackedInt(parts);
  }
  if (parts.format().sparse) view.sparse = TakeSparseRows(parts);
  if (parts.format().col_scales) view.col_scales = parts.Halves(".col_scales");
  view.in = parts.format().rotation_in;
  view.out = parts.format().rotation_out;
  if (!parts.status().ok()) return {};
  return parts.Checked(MakePackedLinearView(view));
}

}  // namespace

std::string_view TypeName(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kF16 ? "F16" : "BF16";
}

absl::StatusOr<StoredWeight> MakeStoredWeight(const std::string& name, const StoredFormat& format,
                                              StoredTensors& tensors) {
  StoredWeight weight = {format, {}, {}};
  Parts parts(name, format, tensors);
  if (!format.packed()) {
    const MappedTensor* tensor =
        parts.Take("", TypeName(format.dtype), format.dtype == DType::kF32 ? 4 : 2);
    if (tensor == nullptr) return parts.status();
    if (tensor->shape != format.shape) {
      return absl::InvalidArgumentError(absl::StrCat(name, " has another shape"));
    }
    weight.dense = tensor->bytes;
    return weight;
  }
  if (format.shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is not a matrix"));
  }
  weight.linear = TakeLinear(parts);
  if (!parts.status().ok()) return parts.status();
  return weight;
}

absl::Status CheckAllTaken(const StoredTensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.taken) return absl::InvalidArgumentError(absl::StrCat(name, " belongs to nothing"));
  }
  return absl::OkStatus();
}

}  // namespace babai
