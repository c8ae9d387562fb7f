#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <system_error>
#include <utility>

#include "kernels/formats/float16.h"
#include "server/reason/reason.h"
#include "server/store/file.h"
#include "server/store/linear_parts.h"
#include "server/store/packed_model.h"
#include "server/store/safetensors_writer.h"
#include "server/store/sha256.h"
#include "server/store/stored_weight.h"

namespace babai {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kDraftName = "draft.partial";
constexpr std::string_view kManifestName = "manifest.json";

absl::Status ModelExists(const fs::path& final_dir) {
  return Refuse(absl::StatusCode::kAlreadyExists, reason::kModelExists, "name",
                "a model named '" + final_dir.filename().string() + "' exists; choose another " +
                    "name, delete it or ask to overwrite it");
}

// Narrows values [begin, begin + out.size() / element) into little-endian bytes.
void Narrow(absl::Span<const float> values, DType dtype, int64_t at, absl::Span<uint8_t> out) {
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), reinterpret_cast<const uint8_t*>(values.data()) + at, out.size());
    return;
  }
  const float* from = values.data() + at / 2;
  for (size_t i = 0; i < out.size() / 2; ++i) {
    const uint16_t bits = dtype == DType::kF16 ? FloatToHalf(from[i]) : FloatToBf16(from[i]);
    std::memcpy(out.data() + 2 * i, &bits, 2);
  }
}

absl::Status CheckDense(std::string_view name, absl::Span<const float> values,
                        const std::vector<int64_t>& shape, DType dtype) {
  if (dtype == DType::kQuantized) return InvalidField(name, "a dense tensor is F32, F16 or BF16");
  int64_t count = 1;
  for (const int64_t d : shape) {
    if (d < 0 || __builtin_mul_overflow(count, d, &count)) return InvalidField(name, "bad shape");
  }
  if (count != static_cast<int64_t>(values.size())) {
    return InvalidField(name, "the values do not fill the shape");
  }
  if (dtype != DType::kF16) return absl::OkStatus();
  constexpr float kRoundsToInfinity = 65520.0f;
  for (const float v : values) {
    if (std::abs(v) >= kRoundsToInfinity) {
      return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedFormat, name,
                    "holds " + std::to_string(v) + ", which fp16 can not; choose dense_type F32");
    }
  }
  return absl::OkStatus();
}

// The oldest schema that knows these formats.
int SchemaOf(const std::map<std::string, StoredFormat>& tensors) {
  const bool old = std::all_of(tensors.begin(), tensors.end(), [](const auto& entry) {
    return !entry.second.packed() || entry.second.plain();
  });
  return old ? 1 : 2;
}

class Writer final : public PackedModelWriter {
 public:
  Writer(fs::path staging, fs::path final_dir, bool replace)
      : staging_(std::move(staging)), final_(std::move(final_dir)), replace_(replace) {}

  ~Writer() override {
    file_.reset();
    std::error_code ignored;  // after a Commit() there is nothing left, or the model it replaced
    fs::remove_all(staging_, ignored);
  }

  absl::Status AddDense(std::string_view name, absl::Span<const float> values,
                        const std::vector<int64_t>& shape, DType dtype) override {
    if (auto status = CheckDense(name, values, shape, dtype); !status.ok()) return status;
    StoredFormat format;
    format.dtype = dtype;
    format.shape = shape;
    if (auto status = Enter(name, format); !status.ok()) return status;
    const int64_t bytes = static_cast<int64_t>(values.size()) * (dtype == DType::kF32 ? 4 : 2);
    return Put(std::string(name), TypeName(dtype), shape, bytes,
               [&](int64_t at, absl::Span<uint8_t> out) { Narrow(values, dtype, at, out); });
  }

  absl::Status AddLinear(std::string_view name, const PackedLinearView& given) override {
    PackedLinearView w = given;
    if (w.sparse && w.sparse->entries() == 0) w.sparse.reset();
    if (auto status = CheckLinear(w); !status.ok()) {
      return InvalidField(name, std::string(status.message()));
    }
    const StoredFormat format = FormatOf(w);
    if (auto status = Enter(name, format); !status.ok()) return status;
    for (const LinearPart& part : PartsOf(w)) {
      const auto put = PutBytes(std::string(name) + part.suffix, part.type, part.shape, part.bytes);
      if (!put.ok()) return put;
    }
    return absl::OkStatus();
  }

  absl::Status FinishFile(std::string_view file_name) override {
    if (file_ == nullptr) return InvalidField(file_name, "a packed file needs at least one tensor");
    const auto finished = std::exchange(file_, nullptr);
    if (auto status = finished->Finish(); !status.ok()) return status;
    return RenameDurably(staging_ / kDraftName, staging_ / file_name);
  }

  const fs::path& staging_dir() const override { return staging_; }
  int64_t tensor_bytes() const override { return tensor_bytes_; }

  absl::StatusOr<Manifest> Commit(Manifest manifest) override {
    if (file_ != nullptr) return InvalidField("", "Commit() before FinishFile()");
    manifest.schema = SchemaOf(tensors_);
    manifest.tensors = tensors_;
    manifest.packed_bytes = tensor_bytes_;
    manifest.bits_per_weight =
        manifest.weights > 0 ? 8.0 * tensor_bytes_ / manifest.weights : std::nan("");
    if (auto status = HashFiles(manifest.files); !status.ok()) return status;
    const auto written = WriteFileDurably(staging_ / kManifestName, ManifestToJson(manifest));
    if (!written.ok()) return written;
    if (auto status = MoveIntoPlace(); !status.ok()) return status;
    return manifest;
  }

 private:
  absl::Status Enter(std::string_view name, const StoredFormat& format) {
    if (tensors_.emplace(std::string(name), format).second) return absl::OkStatus();
    return InvalidField(name, "was added before");
  }

  absl::Status PutBytes(const std::string& name, std::string_view dtype,
                        const std::vector<int64_t>& shape, absl::Span<const uint8_t> bytes) {
    return Put(name, dtype, shape, bytes.size(), [&](int64_t at, absl::Span<uint8_t> out) {
      std::memcpy(out.data(), bytes.data() + at, out.size());
    });
  }

  absl::Status Put(const std::string& name, std::string_view dtype,
                   const std::vector<int64_t>& shape, int64_t bytes,
                   absl::FunctionRef<void(int64_t, absl::Span<uint8_t>)> produce) {
    if (file_ == nullptr) {
      auto file = SafetensorsWriter::Create(staging_ / kDraftName);
      if (!file.ok()) return file.status();
      file_ = *std::move(file);
    }
    tensor_bytes_ += bytes;
    return file_->Add(name, dtype, shape, bytes, produce);
  }

  // Hashes what the disk holds, not what was meant to be written, and makes files that others saved
  // here (the tokenizer's) durable.
  absl::Status HashFiles(std::map<std::string, Manifest::File>& files) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(staging_, error)) {
      if (auto status = SyncFile(entry.path()); !status.ok()) return status;
      const auto file = MappedFile::Open(entry.path());
      if (!file.ok()) return file.status();
      const auto bytes = (*file)->bytes();
      files[entry.path().filename().string()] = {Sha256Hex(bytes),
                                                 static_cast<int64_t>(bytes.size())};
    }
    return error ? IoError(error.value(), "listing", staging_) : absl::OkStatus();
  }

  absl::Status MoveIntoPlace() {
    std::error_code error;
    if (!fs::exists(final_, error)) return RenameDurably(staging_, final_);
    if (!replace_) return ModelExists(final_);
    // The old model now lies in staging, which the destructor removes. Whoever has it mapped keeps
    // it.
    if (::renameat2(AT_FDCWD, staging_.c_str(), AT_FDCWD, final_.c_str(), RENAME_EXCHANGE) != 0) {
      return IoError(errno, "replacing", final_);
    }
    return SyncDirectory(final_.parent_path());
  }

  const fs::path staging_, final_;
  const bool replace_;
  std::unique_ptr<SafetensorsWriter> file_;
  std::map<std::string, StoredFormat> tensors_;
  int64_t tensor_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PackedModelWriter>> PackedModelWriter::Create(
    const fs::path& staging_dir, const fs::path& final_dir, bool replace) {
  std::error_code error;
  if (!replace && fs::exists(final_dir, error)) return ModelExists(final_dir);
  if (!fs::create_directory(staging_dir, error)) {
    return IoError(error ? error.value() : EEXIST, "creating", staging_dir);
  }
  return std::make_unique<Writer>(staging_dir, final_dir, replace);
}

}  // namespace babai
