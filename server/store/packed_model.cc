#include "server/store/packed_model.h"

#include <atomic>
#include <bit>
#include <cstring>
#include <thread>
#include <utility>

#include "kernels/formats/float16.h"
#include "server/model/input_file.h"
#include "server/model/safetensors.h"
#include "server/reason/reason.h"
#include "server/store/file.h"
#include "server/store/sha256.h"
#include "server/store/stored_weight.h"

namespace babai {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxManifestBytes = 256 << 20;

static_assert(std::endian::native == std::endian::little, "packed files are mapped as they lie");

absl::Status Damaged(std::string_view file, std::string_view rule) {
  return Refuse(absl::StatusCode::kDataLoss, reason::kChecksumMismatch, file,
                std::string(rule) + "; delete the model and quantize it again");
}

int64_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

void Widen(absl::Span<const uint8_t> bytes, DType dtype, absl::Span<float> out) {
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return;
  }
  const auto* from = reinterpret_cast<const uint16_t*>(bytes.data());
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = dtype == DType::kF16 ? HalfToFloat(from[i]) : Bf16ToFloat(from[i]);
  }
}

class MappedModel final : public PackedModel {
 public:
  explicit MappedModel(fs::path dir) : dir_(std::move(dir)) {}

  absl::Status Load(bool verify) {
    if (auto status = ReadManifest(); !status.ok()) return status;
    if (auto status = MapFiles(); !status.ok()) return status;
    if (verify) {
      if (auto status = VerifyFiles(); !status.ok()) return status;
    }
    StoredTensors tensors;
    if (auto status = ListTensors(tensors); !status.ok()) return status;
    for (const auto& [name, format] : manifest_.tensors) {
      auto weight = MakeStoredWeight(name, format, tensors);
      if (!weight.ok()) return Damaged("manifest.json", std::string(weight.status().message()));
      weights_[name] = *std::move(weight);
    }
    if (auto status = CheckAllTaken(tensors); !status.ok()) {
      return Damaged("manifest.json", std::string(status.message()));
    }
    return absl::OkStatus();
  }

  const Manifest& manifest() const override { return manifest_; }
  const ModelConfig& config() const override { return config_; }
  const fs::path& dir() const override { return dir_; }

  bool Has(std::string_view name) const override { return weights_.count(name) != 0; }
  StoredFormat Format(std::string_view name) const override {
    return weights_.find(name)->second.format;
  }

  absl::StatusOr<PackedLinearView> LinearTensor(std::string_view name) const override {
    const auto it = weights_.find(name);
    if (it == weights_.end() || !it->second.linear) return NoSuchTensor(name);
    return *it->second.linear;
  }

  absl::StatusOr<PackedIntView> PackedIntTensor(std::string_view name) const override {
    const auto it = weights_.find(name);
    if (it == weights_.end() || !it->second.format.plain()) return NoSuchTensor(name);
    return std::get<PackedIntView>(it->second.linear->base);
  }

  absl::StatusOr<absl::Span<const uint8_t>> DenseTensor(
      std::string_view name, std::vector<int64_t>* shape) const override {
    const auto it = weights_.find(name);
    if (it == weights_.end() || it->second.format.kind != StoredFormat::Kind::kDense) {
      return NoSuchTensor(name);
    }
    *shape = it->second.format.shape;
    return it->second.dense;
  }

  absl::StatusOr<std::vector<float>> ReadFloat(std::string_view name) const override {
    const auto it = weights_.find(name);
    if (it == weights_.end()) return NoSuchTensor(name);
    const StoredWeight& weight = it->second;
    if (weight.linear) {
      std::vector<float> values(weight.linear->rows() * weight.linear->cols());
      if (auto status = DecodeWeight(*weight.linear, values.data()); !status.ok()) {
        return Damaged(name, std::string(status.message()));
      }
      return values;
    }
    std::vector<float> values(weight.dense.size() / ElementBytes(weight.format.dtype));
    Widen(weight.dense, weight.format.dtype, absl::MakeSpan(values));
    return values;
  }

 private:
  static absl::Status NoSuchTensor(std::string_view name) {
    return absl::NotFoundError("no tensor '" + std::string(name) + "' in this format");
  }

  absl::Status ReadManifest() {
    const auto text = ReadFile(dir_ / "manifest.json", kMaxManifestBytes);
    if (absl::IsNotFound(text.status())) {
      return Refuse(absl::StatusCode::kNotFound, reason::kModelNotFound, "name",
                    "there is no model '" + dir_.filename().string() + "'");
    }
    if (!text.ok()) return text.status();
    auto manifest = ManifestFromJson(*text);
    if (!manifest.ok()) return manifest.status();
    manifest_ = *std::move(manifest);
    auto config = ModelConfigFromJson(manifest_.config_json);
    if (!config.ok()) return Damaged("manifest.json", "its model configuration can not be read");
    config_ = *std::move(config);
    return absl::OkStatus();
  }

  absl::Status MapFiles() {
    for (const auto& [name, file] : manifest_.files) {
      auto mapped = MappedFile::Open(dir_ / name);
      if (absl::IsNotFound(mapped.status())) return Damaged(name, "is missing");
      if (!mapped.ok()) return mapped.status();
      if (static_cast<int64_t>((*mapped)->bytes().size()) != file.bytes) {
        return Damaged(name, "does not have the size that the manifest gives");
      }
      files_[name] = *std::move(mapped);
    }
    return absl::OkStatus();
  }

  // Reads every byte: the files are spread over the processor's threads.
  absl::Status VerifyFiles() const {
    const std::vector<std::pair<std::string, Manifest::File>> files(manifest_.files.begin(),
                                                                    manifest_.files.end());
    std::vector<char> intact(files.size(), 0);
    std::atomic<size_t> next = 0;
    const auto verify = [&] {
      for (size_t i = next++; i < files.size(); i = next++) {
        intact[i] = Sha256Hex(files_.at(files[i].first)->bytes()) == files[i].second.sha256;
      }
    };
    const size_t helpers = std::min<size_t>(std::thread::hardware_concurrency(), files.size());
    std::vector<std::thread> threads;
    for (size_t i = 1; i < helpers; ++i) threads.emplace_back(verify);
    verify();
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < files.size(); ++i) {
      if (!intact[i]) return Damaged(files[i].first, "its sha256 is not the manifest's");
    }
    return absl::OkStatus();
  }

  absl::Status ListTensors(StoredTensors& tensors) const {
    for (const auto& [name, mapped] : files_) {
      if (fs::path(name).extension() != ".safetensors") continue;
      auto file = InputFile::Open(dir_, name);
      if (!file.ok()) return Damaged(name, "can not be opened");
      const auto header = ReadSafetensorsHeader(*file, 0);
      if (!header.ok()) return Damaged(name, "is not a safetensors file");
      if (file->size() != mapped->bytes().size()) return Damaged(name, "changed its size");
      for (const StoredTensor& t : *header) {
        const auto bytes = mapped->bytes().subspan(t.offset, t.bytes);
        if (!tensors.emplace(t.name, MappedTensor{t.type->name, t.shape, bytes}).second) {
          return Damaged(name, "repeats a tensor of another file");
        }
      }
    }
    return absl::OkStatus();
  }

  const fs::path dir_;
  Manifest manifest_;
  ModelConfig config_;
  std::map<std::string, std::unique_ptr<MappedFile>> files_;
  std::map<std::string, StoredWeight, std::less<>> weights_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const PackedModel>> PackedModel::Open(const fs::path& dir,
                                                                     bool verify) {
  auto model = std::make_shared<MappedModel>(dir);
  if (auto status = model->Load(verify); !status.ok()) return status;
  return model;
}

}  // namespace babai
