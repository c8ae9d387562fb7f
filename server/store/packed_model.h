// The packed model on disk ("babai-packed"): everything needed to serve without the
// source. A directory
//
//   manifest.json          written last; its presence is the commit point
//   block-00000.safetensors ...   one file a decoder block
//   rest.safetensors       embeddings, final norm, head
//   tokenizer.json, chat_template.jinja ...   what Tokenizer::Save() wrote
//
// A packed linear `blocks.0.q.weight` is stored as a tensor for each of its parts,
// `blocks.0.q.weight.codes`, `.scales` and so on; an unquantized tensor keeps its canonical name
// with dtype F32, F16 or BF16. Files are written through pwrite, fsync, rename, fsync(dir), and
// their sha256 is in the manifest and checked at Open(). docs/formats.md has every byte.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/formats/packed_linear.h"
#include "server/model/checkpoint.h"
#include "server/model/config.h"

namespace babai {

// The newest schema. A manifest has the oldest one that can say what it says: 1 if all its packed
// tensors are plain F1.
inline constexpr int kManifestSchema = 2;

// How one canonical weight is stored.
struct StoredFormat {
  enum class Kind { kDense, kPackedInt, kPackedTable, kEntropyCoded } kind = Kind::kDense;
  DType dtype = DType::kF32;  // dense only: kF32, kF16 or kBF16
  int bits = 0;               // kPackedInt, kPackedTable
  int64_t group = 0;          // kPackedInt, and kPackedTable with TableKind::kShared
  bool symmetric = false;     // kPackedInt
  TableKind table_kind = TableKind::kShared;  // kPackedTable
  // What stands around a packed matrix (kernels/formats/packed_linear.h).
  bool sparse = false, col_scales = false;
  Rotation rotation_in, rotation_out;
  std::vector<int64_t> shape;  // of the weight itself: [out, in] or [n]; set by the writer

  bool packed() const { return kind != Kind::kDense; }
  // F1 and nothing around it.
  bool plain() const {
    return kind == Kind::kPackedInt && !sparse && !col_scales && rotation_in.identity() &&
           rotation_out.identity();
  }
};

// What the job measured for a linear; numbers are those of server/quant's Certificate.
struct LinearReport {
  std::string name;  // canonical, "blocks.0.q.weight"
  int64_t rows = 0, cols = 0;
  double bits_per_weight = 0, relative_error = 0, proxy_loss = 0, babai_bound = 0, clip_rate = 0,
         rate_gap_bits = 0, entropy_bits = 0, damping = 0, alpha = 0, outliers = 0;
  int damping_doublings = 0;
  int64_t dead_columns = 0;
};

struct Evaluation {  // on held-out calibration tokens; absent numbers are NaN and left out of the
                     // JSON
  double perplexity = 0, reference_perplexity = 0, mean_kl = 0, top1_agreement = 0;
  int64_t tokens = 0;
};

struct Manifest {
  int schema = kManifestSchema;
  std::string name;  // as the client named it
  std::string tool_version;
  std::string source_uri, source_digest, calibration_digest, content_key;
  std::string recipe_json;     // canonical JSON (server/quant/recipe.h)
  std::string config_json;     // ModelConfigToJson()
  std::string created;         // RFC 3339, UTC
  int64_t weights = 0;         // parameters of the source
  int64_t packed_bytes = 0;    // bytes of all tensor data
  double bits_per_weight = 0;  // 8 * packed_bytes / weights: everything stored counts
  std::map<std::string, StoredFormat> tensors;
  std::vector<LinearReport> linears;
  bool has_evaluation = false;
  Evaluation evaluation;
  std::vector<std::string> warnings;
  struct File {
    std::string sha256;
    int64_t bytes = 0;
  };
  std::map<std::string, File> files;
};

// One object; numbers that are not finite are left out, and read back as NaN.
std::string LinearReportToJson(const LinearReport& linear);
absl::StatusOr<LinearReport> LinearReportFromJson(std::string_view json);  // DataLoss

std::string ManifestToJson(const Manifest& manifest);
// FailedPrecondition SCHEMA_TOO_NEW; DataLoss: not a manifest this program could have written.
absl::StatusOr<Manifest> ManifestFromJson(std::string_view json);

// Writes a packed model into a staging directory and commits it by one rename. Not thread-safe.
// Dropped before Commit(), it removes what it wrote.
class PackedModelWriter {
 public:
  // `final_dir` must not exist; staging happens in `staging_dir` (same file system). With `replace`
  // it may: Commit() then exchanges the two at one stroke and removes the old model.
  // AlreadyExists MODEL_EXISTS, also from Commit().
  static absl::StatusOr<std::unique_ptr<PackedModelWriter>> Create(
      const std::filesystem::path& staging_dir, const std::filesystem::path& final_dir,
      bool replace = false);
  virtual ~PackedModelWriter() = default;

  // Tensors of the file now being assembled. Buffers are copied out before the call returns.
  // InvalidArgument: the values do not fill the shape, or one of them is too large for fp16.
  virtual absl::Status AddDense(std::string_view name, absl::Span<const float> values,
                                const std::vector<int64_t>& shape, DType dtype) = 0;
  // Anything packed. Sparse values without an entry are left out. InvalidArgument: a part breaks a
  // rule of its format.
  virtual absl::Status AddLinear(std::string_view name, const PackedLinearView& w) = 0;
  absl::Status AddPackedInt(std::string_view name, const PackedIntView& w) {
    return AddLinear(name, PackedLinearView{.base = w});
  }
  // Ends the file: "block-00000.safetensors" ... or "rest.safetensors". Durable when it returns.
  virtual absl::Status FinishFile(std::string_view file_name) = 0;

  // Where to save further files (tokenizer); they are hashed into the manifest by Commit().
  virtual const std::filesystem::path& staging_dir() const = 0;

  // Bytes of tensor data so far.
  virtual int64_t tensor_bytes() const = 0;

  // Fills schema, files, tensors, packed_bytes and bits_per_weight, writes manifest.json, renames
  // into place.
  virtual absl::StatusOr<Manifest> Commit(Manifest manifest) = 0;
};

// A committed packed model, memory-mapped. Thread-safe; views live as long as the object.
class PackedModel {
 public:
  // Verifies every file's size and sha256 (`verify` false: sizes only) and every tensor's extent
  // against the manifest. DataLoss CHECKSUM_MISMATCH names the file.
  static absl::StatusOr<std::shared_ptr<const PackedModel>> Open(const std::filesystem::path& dir,
                                                                 bool verify = true);
  virtual ~PackedModel() = default;

  virtual const Manifest& manifest() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const std::filesystem::path& dir() const = 0;

  virtual bool Has(std::string_view name) const = 0;
  virtual StoredFormat Format(std::string_view name) const = 0;  // requires Has(name)
  // NotFound: there is no packed tensor of this name.
  virtual absl::StatusOr<PackedLinearView> LinearTensor(std::string_view name) const = 0;
  // The same for one that is plain().
  virtual absl::StatusOr<PackedIntView> PackedIntTensor(std::string_view name) const = 0;
  // Raw bytes of a dense tensor, its dtype in Format(name), its shape in `shape`.
  virtual absl::StatusOr<absl::Span<const uint8_t>> DenseTensor(
      std::string_view name, std::vector<int64_t>* shape) const = 0;
  // Any tensor as fp32 [rows, cols] (packed ones decoded). DataLoss: an entropy-coded one does not
  // decode.
  virtual absl::StatusOr<std::vector<float>> ReadFloat(std::string_view name) const = 0;
};

}  // namespace babai
