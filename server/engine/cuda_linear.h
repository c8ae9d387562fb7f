// A linear on the device: weights of one or several stacked matrices (q over k over v, gate over
// up). What each stored format becomes:
//
//   F1, F6, F2 with a      packed integers (kernels/cuda/packed_layout.h), those that
//   shared table           linear_layout.h finds, where there are some and the kernels take their
//                          group and columns; what stands around them stays around them
//                          (cuda_surroundings.h)
//   any other F2           4-bit codes and a table a row (cuda_tables.h), where the kernels take
//                          its group and columns; the same around them
//   dense                  16-bit floats
//   anything else          16-bit floats: W of kernels/formats/packed_linear.h decoded once, what
//                          stands around it included. Exact up to one rounding a weight; takes 16
//                          bits a weight
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/dense_gemm.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/packed_gemm.h"
#include "kernels/cuda/queue.h"
#include "server/engine/cuda_loader.h"
#include "server/engine/cuda_surroundings.h"
#include "server/engine/cuda_tables.h"
#include "server/store/packed_model.h"

namespace babai {

// What the products of a runner share.
struct CudaGemms {
  cuda::DeviceLimits limits;
  cuda::Buffer packed_workspace;           // PackedGemmWorkspaceBytes(), filled with 0xff
  std::unique_ptr<cuda::DenseGemm> dense;  // null: no linear needs it
  CudaScratch scratch;
};

// What they need for that.
struct CudaGemmNeeds {
  bool dense = false;
  bool decoded = false;  // CudaScratch::decoded, for many tokens
  CudaScratch::Needs scratch;

  void Include(const CudaGemmNeeds& other) {
    dense |= other.dense, decoded |= other.decoded;
    scratch.Include(other.scratch);
  }
};

// Immutable once made.
class CudaLinear {
 public:
  struct Part {
    int64_t first_row = 0, rows = 0;
    bool packed = false;
    cuda::PackedShape shape;  // packed only, and all below but weights
    cuda::Buffer weights;     // integers, or codes of tables
    cuda::Buffer tables;      // without bytes: integers
    CudaSurroundings around;
  };

  // How matrices of a stack lie in one product: one after another; or, two of equal rows, eight
  // rows of the one and the same eight of the other in turn, as GemmOutput::kGate wants them.
  enum class Order { kStacked, kInEights };

  CudaLinear() = default;
  // The parts by rows, each of `cols` columns.
  CudaLinear(std::vector<Part> parts, int64_t cols, Order order = Order::kStacked);

  // Stacks the named matrices (which must be there) by rows; neighbours of one execution format
  // become one product. With kInEights wished, order() tells whether that was possible: both
  // packed, of one format, nothing around them. The weights are there once the loader has finished.
  // InvalidArgument UNSUPPORTED_SHAPE, DataLoss INVALID_MODEL_FILE, ResourceExhausted
  // OUT_OF_MEMORY.
  static absl::StatusOr<CudaLinear> Load(const PackedModel& model,
                                         absl::Span<const std::string> names, cuda::Dtype dtype,
                                         CudaLoader& loader, Order wished = Order::kStacked);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  Order order() const { return order_; }
  // Whether it is one product of packed integers and no more, which alone take GemmEnds.
  bool takes_ends() const {
    return parts_.size() == 1 && parts_[0].packed && parts_[0].tables.bytes() == 0 &&
           parts_[0].around.none();
  }
  // Whether they may norm x. Requires takes_ends().
  bool TakesNorm(int m, const CudaGemms& gemms) const {
    return cuda::PackedGemmTakesNorm(parts_[0].shape, m, gemms.limits);
  }
  int64_t bytes() const;
  CudaGemmNeeds needs() const;

  // x [m, cols()], y [m, rows()] of dtype: a part's rows of all tokens stand together in y, see
  // Output(). `ends` changes that. Enqueues; x and y 16-byte aligned. How: see PackedGemmArgs.
  struct How {
    cuda::GemmEnds ends;
    cuda::Turn turn = cuda::Turn::kWide;
    int64_t spared_bytes = 0;
  };
  absl::Status Run(const void* x, int m, void* y, cuda::Dtype dtype, const CudaGemms& gemms,
                   const cuda::Queue& queue, const How& how) const;
  // Where the rows from `first_row` on are in such a y; they must not reach into another matrix of
  // the stack.
  cuda::RowsOf Output(const void* y, int m, int64_t first_row) const;

 private:
  std::vector<Part> parts_;
  int64_t rows_ = 0, cols_ = 0;
  Order order_ = Order::kStacked;
};

// What Load() keeps on the device for a matrix of the model, which must be there, at most (of F6's
// sparse values an estimate); and what its product needs.
struct CudaLinearPlan {
  int64_t bytes = 0;
  CudaGemmNeeds needs;
};
absl::StatusOr<CudaLinearPlan> PlanCudaLinear(const PackedModel& model, const std::string& name);

}  // namespace babai
