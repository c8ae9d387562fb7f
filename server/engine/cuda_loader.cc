#include "server/engine/cuda_loader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/queue.h"
#include "kernels/cuda/repack_on_device.h"

namespace babai {
namespace {

int64_t BytesOf(cuda::StoredFloat type) { return type == cuda::StoredFloat::kFp32 ? 4 : 2; }

constexpr int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// What one row of an F1 matrix has of each buffer.
struct RowBytes {
  int64_t codes, scales, zeros;
  explicit RowBytes(const PackedIntView& w)
      : codes(static_cast<int64_t>(w.codes.size()) / w.rows),
        scales(w.groups() * 2),
        zeros(static_cast<int64_t>(w.zeros.size()) / w.rows) {}
  int64_t sum() const { return codes + scales + zeros; }
};

// Rows [first, first + rows) of the stack, their codes, scales and zeros each in one run.
void CopyRows(absl::Span<const PackedIntView> stack, const RowBytes& row, int64_t first,
              int64_t rows, uint8_t* codes, uint8_t* scales, uint8_t* zeros) {
  for (const PackedIntView& w : stack) {
    const int64_t begin = std::max<int64_t>(first, 0), end = std::min(first + rows, w.rows);
    first -= w.rows;
    if (begin >= end) continue;
    const int64_t count = end - begin;
    std::memcpy(codes, w.codes.data() + begin * row.codes, count * row.codes);
    std::memcpy(scales, w.scales.data() + begin * w.groups(), count * row.scales);
    if (row.zeros > 0) std::memcpy(zeros, w.zeros.data() + begin * row.zeros, count * row.zeros);
    codes += count * row.codes, scales += count * row.scales, zeros += count * row.zeros;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaLoader>> CudaLoader::Make(int64_t piece_bytes) {
  auto loader = std::make_unique<CudaLoader>();
  loader->piece_bytes_ = piece_bytes;
  absl::StatusOr<cuda::Stream> stream = cuda::Stream::Make();
  if (!stream.ok()) return stream.status();
  loader->stream_ = *std::move(stream);
  for (Piece& piece : loader->pieces_) {
    absl::StatusOr<cuda::Buffer> host = cuda::Buffer::Pinned(piece_bytes);
    if (!host.ok()) return host.status();
    absl::StatusOr<cuda::Buffer> device = cuda::Buffer::OnDevice(piece_bytes);
    if (!device.ok()) return device.status();
    absl::StatusOr<cuda::Event> used = cuda::Event::Make();
    if (!used.ok()) return used.status();
    piece = {*std::move(host), *std::move(device), *std::move(used)};
  }
  return loader;
}

absl::StatusOr<CudaLoader::Piece*> CudaLoader::Next() {
  Piece& piece = pieces_[turn_ ^= 1];
  if (absl::Status waited = piece.used.Wait(); !waited.ok()) return waited;
  return &piece;
}

absl::Status CudaLoader::Send(const Piece& piece, int64_t bytes) const {
  return cuda::FromCuda(cudaMemcpyAsync(piece.device.data(), piece.host.data(), bytes,
                                        cudaMemcpyHostToDevice, stream_.get()),
                        "copying weights");
}

absl::Status CudaLoader::Copy(const void* from, int64_t bytes, void* to) {
  for (int64_t at = 0; at < bytes; at += piece_bytes_) {
    const absl::StatusOr<Piece*> piece = Next();
    if (!piece.ok()) return piece.status();
    const int64_t count = std::min(bytes - at, piece_bytes_);
    std::memcpy((*piece)->host.data(), static_cast<const uint8_t*>(from) + at, count);
    const cudaError_t copied =
        cudaMemcpyAsync(static_cast<uint8_t*>(to) + at, (*piece)->host.data(), count,
                        cudaMemcpyHostToDevice, stream_.get());
    if (absl::Status s = cuda::FromCuda(copied, "copying weights"); !s.ok()) return s;
    if (absl::Status s = (*piece)->used.Record(stream_); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CudaLoader::Bring(const void* from, int64_t bytes, void* to) {
  for (int64_t at = 0; at < bytes; at += piece_bytes_) {
    const absl::StatusOr<Piece*> piece = Next();
    if (!piece.ok()) return piece.status();
    const int64_t count = std::min(bytes - at, piece_bytes_);
    const cudaError_t copied =
        cudaMemcpyAsync((*piece)->host.data(), static_cast<const uint8_t*>(from) + at, count,
                        cudaMemcpyDeviceToHost, stream_.get());
    absl::Status status = cuda::FromCuda(copied, "copying from the device");
    if (status.ok()) status = Finish();
    if (!status.ok()) return status;
    std::memcpy(static_cast<uint8_t*>(to) + at, (*piece)->host.data(), count);
  }
  return absl::OkStatus();
}

absl::Status CudaLoader::Convert(const void* from, cuda::StoredFloat type, int64_t count, void* to,
                                 cuda::Dtype dtype) {
  const int64_t size = BytesOf(type), most = piece_bytes_ / size;
  for (int64_t at = 0; at < count; at += most) {
    const absl::StatusOr<Piece*> piece = Next();
    if (!piece.ok()) return piece.status();
    const int64_t values = std::min(count - at, most);
    std::memcpy((*piece)->host.data(), static_cast<const uint8_t*>(from) + at * size,
                values * size);
    if (absl::Status s = Send(**piece, values * size); !s.ok()) return s;
    const cudaError_t launched =
        cuda::Convert((*piece)->device.data(), type, values, static_cast<uint16_t*>(to) + at, dtype,
                      {stream_.get(), false});
    if (absl::Status s = cuda::FromCuda(launched, "converting weights"); !s.ok()) return s;
    if (absl::Status s = (*piece)->used.Record(stream_); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CudaLoader::Repack(absl::Span<const PackedIntView> stack,
                                const cuda::PackedShape& shape, void* to) {
  constexpr int64_t kAlignment = 3 * 16;  // lost between the three runs
  const int64_t fitting = (piece_bytes_ - kAlignment) / RowBytes(stack[0]).sum();
  const int64_t most = fitting / cuda::kStripRows * cuda::kStripRows;
  if (most == 0) return absl::InvalidArgumentError("a row is too long to be loaded");
  for (int64_t first = 0; first < shape.n; first += most) {
    const int64_t rows = std::min(shape.n - first, most);
    if (absl::Status s = RepackRows(stack, shape, first, rows, to); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CudaLoader::RepackRows(absl::Span<const PackedIntView> stack,
                                    const cuda::PackedShape& shape, int64_t first, int64_t rows,
                                    void* to) {
  const absl::StatusOr<Piece*> piece = Next();
  if (!piece.ok()) return piece.status();
  const RowBytes row(stack[0]);
  const int64_t scales = RoundUp(rows * row.codes, 16);
  const int64_t zeros = RoundUp(scales + rows * row.scales, 16);
  uint8_t* host = (*piece)->host.data<uint8_t>();
  const uint8_t* device = (*piece)->device.data<uint8_t>();
  CopyRows(stack, row, first, rows, host, host + scales, host + zeros);
  if (absl::Status s = Send(**piece, zeros + rows * row.zeros); !s.ok()) return s;
  cuda::RepackArgs args{};
  args.codes = device;
  args.scales = reinterpret_cast<const uint16_t*>(device + scales);
  args.zeros = shape.asymmetric ? device + zeros : nullptr;
  args.shape = shape;
  args.first_row = static_cast<int>(first), args.rows = static_cast<int>(rows);
  args.out = static_cast<uint8_t*>(to);
  const cudaError_t launched = cuda::RepackOnDevice(args, {stream_.get(), false});
  if (absl::Status s = cuda::FromCuda(launched, "repacking weights"); !s.ok()) return s;
  return (*piece)->used.Record(stream_);
}

}  // namespace babai
