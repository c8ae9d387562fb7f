// The threads of wide_gemm.h's kernel that copy: one W, one x.
#pragma once

#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide_params.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <typename Shape>
struct WideCopier {
  static constexpr int kTokens = Shape::kTokens;
  static constexpr int kBoxBytes = kTokens * kXBoxCols * 2;

  const WideGemmParams& p;
  uint32_t ring, full, empty;

  // Calls copy(piece, unit, barrier, stage's address) for each unit of the block, when its stage is
  // free.
  template <typename Copy>
  __device__ __forceinline__ void ForEachUnit(const Copy& copy) const {
    WideStage at;
    const int pieces = WidePiece::Count(p, blockIdx.x);
    int ahead = p.stages;
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) {
      const WidePiece piece(p, blockIdx.x, i);
#pragma unroll 1
      for (int unit = 0; unit < piece.units; ++unit) {
        if (--ahead < 0) BarrierWait(empty + at.stage * 8, at.parity ^ 1);
        copy(piece, unit, full + at.stage * 8, ring + at.stage * p.stage_bytes);
        at.Next(p.stages);
      }
    }
  }
  __device__ __forceinline__ void CopyWeights() const {
    ForEachUnit([&](const WidePiece& piece, int unit, uint32_t bar, uint32_t to) {
      const int most = Shape::Rows(p) / kStripRows, strip0 = piece.row_tile * most;
      const int strips = min(most, p.strips - strip0);
      const int bytes = piece.Tiles(p, unit) * p.record_bytes;
      const uint8_t* from = p.weights + strip0 * p.strip_bytes +
                            int64_t{piece.k_begin + (unit << p.unit_shift)} * p.record_bytes;
      BarrierArriveExpect(bar, strips * bytes);
#pragma unroll 1
      for (int strip = 0; strip < strips; ++strip) {
        BulkCopy(to, from, bytes, bar);
        to += p.record_bytes << p.unit_shift, from += p.strip_bytes;
      }
    });
  }
  __device__ __forceinline__ void CopyX(const CUtensorMap* map) const {
    LetNextKernelStart();
    bool waited = false;
    ForEachUnit([&](const WidePiece& piece, int unit, uint32_t bar, uint32_t to) {
      const int token0 = piece.token_tile * kTokens;
      const int boxes = piece.Tiles(p, unit) * (kTileCols / kXBoxCols);
      const int col = (piece.k_begin + (unit << p.unit_shift)) * kTileCols;
      BarrierArriveExpect(bar, boxes * kBoxBytes);
      // As late as can be: code is fetched meanwhile.
      if (!waited) WaitForPrecedingKernel();
      waited = true;
#pragma unroll 1
      for (int box = 0; box < boxes; ++box)
        TensorCopy(to + p.x_offset + box * kBoxBytes, map, col + box * kXBoxCols, token0, bar);
    });
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
