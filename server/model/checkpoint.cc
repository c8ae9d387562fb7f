#include "server/model/checkpoint.h"

#include <openssl/evp.h>

#include <algorithm>
#include <system_error>

#include "server/model/file_checkpoint.h"
#include "server/model/refusal.h"
#include "server/model/tensor_reader.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

namespace fs = std::filesystem;

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }
  void Add(std::string_view bytes) { EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()); }
  std::string Hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_DigestFinal_ex(context_.get(), digest, &size);
    constexpr char kDigits[] = "0123456789abcdef";
    std::string hex;
    for (unsigned i = 0; i < size; ++i) {
      hex += kDigits[digest[i] >> 4];
      hex += kDigits[digest[i] & 15];
    }
    return hex;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

absl::Status AddFile(const InputFile& file, Sha256& sha) {
  sha.Add(file.name() + '\0' + std::to_string(file.size()) + '\0');
  std::vector<char> buffer(1 << 20);
  for (uint64_t done = 0; done < file.size(); done += buffer.size()) {
    const auto part = absl::MakeSpan(buffer).subspan(0, file.size() - done);
    if (absl::Status read = file.ReadAt(done, part); !read.ok()) return read;
    sha.Add({part.data(), part.size()});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Finish(absl::StatusOr<CheckpointParts> parts) {
  if (!parts.ok()) return parts.status();
  return std::make_unique<FileCheckpoint>(*std::move(parts));
}

// The only .gguf of a folder, empty if there is none or more than one.
fs::path OnlyGguf(const fs::path& folder) {
  std::error_code error;
  fs::path found;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() != ".gguf") continue;
    if (!found.empty()) return {};
    found = it->path();
  }
  return found;
}

}  // namespace

const TensorInfo* Checkpoint::Find(std::string_view name) const {
  for (const TensorInfo& tensor : tensors()) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

FileCheckpoint::FileCheckpoint(CheckpointParts parts) : parts_(std::move(parts)) {
  for (const TensorBinding& binding : parts_.map.bindings) {
    index_.emplace(binding.info.name, tensors_.size());
    tensors_.push_back(binding.info);
  }
}

absl::StatusOr<std::vector<float>> FileCheckpoint::Read(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  if (found == index_.end()) {
    return Refuse(absl::StatusCode::kNotFound, reason::kInternal, "",
                  "the model has no tensor " + Quoted(name));
  }
  const TensorBinding& binding = parts_.map.bindings[found->second];
  return ReadTensor(parts_.files[binding.stored.file], binding);
}

absl::StatusOr<std::string> FileCheckpoint::Digest() const {
  std::vector<const InputFile*> files;
  for (const InputFile& file : parts_.files) files.push_back(&file);
  std::sort(files.begin(), files.end(),
            [](const InputFile* a, const InputFile* b) { return a->name() < b->name(); });
  Sha256 sha;
  for (const InputFile* file : files) {
    if (absl::Status status = AddFile(*file, sha); !status.ok()) return status;
  }
  return sha.Hex();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const fs::path& path,
                                                           const fs::path& root) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    return Refuse(absl::StatusCode::kNotFound, reason::kSourceNotFound, path.filename().string(),
                  "no such file or folder");
  }
  if (!fs::is_directory(status)) {
    if (path.extension() == ".gguf") return Finish(OpenGgufModel(path, root));
    return UnsupportedFile(path.filename().string(),
                           "a model is a .gguf file or a folder with config.json and safetensors");
  }
  const fs::path gguf = fs::exists(path / "config.json", error) ? fs::path() : OnlyGguf(path);
  return gguf.empty() ? Finish(OpenHfFolder(path, root)) : Finish(OpenGgufModel(gguf, root));
}

}  // namespace babai
