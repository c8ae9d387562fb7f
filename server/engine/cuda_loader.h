// Weights from the mapped file to the device: through pinned memory, in pieces, each turned into
// its execution layout there while the host fetches the next. A copy of memory that is not pinned
// would keep other threads from the device until it is done.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/convert.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/formats/packed_int.h"

namespace babai {

// Not thread-safe. What it was given to read may go once a call returns; what it writes is there
// after Finish(). Errors: those of kernels/cuda/device.h.
class CudaLoader {
 public:
  static constexpr int64_t kPieceBytes = int64_t{16} << 20;
  // For whoever starts beside steps: other threads' launches wait while a piece is made, some
  // 0.5 ms a MB (H200).
  static constexpr int64_t kSmallPieceBytes = int64_t{1} << 20;

  static absl::StatusOr<std::unique_ptr<CudaLoader>> Make(int64_t piece_bytes = kPieceBytes);
  // The most pinned and device memory that one takes.
  static constexpr int64_t kDeviceBytes = 2 * kPieceBytes;

  absl::Status Copy(const void* from, int64_t bytes, void* to);
  // `count` floats of `type` become ones of `dtype`.
  absl::Status Convert(const void* from, cuda::StoredFloat type, int64_t count, void* to,
                       cuda::Dtype dtype);
  // A stack of F1 matrices of one format; `shape` is the whole stack's.
  absl::Status Repack(absl::Span<const PackedIntView> stack, const cuda::PackedShape& shape,
                      void* to);
  // From the device to the host, there when the call returns.
  absl::Status Bring(const void* from, int64_t bytes, void* to);
  absl::Status Finish() const { return stream_.Synchronize(); }

 private:
  struct Piece {
    cuda::Buffer host, device;
    cuda::Event used;
  };

  // The piece whose turn it is, once the device is done with it.
  absl::StatusOr<Piece*> Next();
  absl::Status Send(const Piece& piece, int64_t bytes) const;
  absl::Status RepackRows(absl::Span<const PackedIntView> stack, const cuda::PackedShape& shape,
                          int64_t first, int64_t rows, void* to);

  int64_t piece_bytes_ = 0;
  cuda::Stream stream_;
  Piece pieces_[2];
  int turn_ = 0;
};

}  // namespace babai
