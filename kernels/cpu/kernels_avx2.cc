#include "kernels/cpu/simd_avx2.h"
// The tiles need the lanes above.
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/fp32_tile.h"
#include "kernels/cpu/int8_tile.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tile.h"

namespace babai::cpu {

const KernelTable& Avx2Kernels() {
  static constexpr KernelTable kTable = {
      .quantize = Int8Tile<Avx2>::Quantize,
      .int8_block = Int8Tile<Avx2>::Run,
      .exact_panels = Fp32Tile<Avx2>::Exact,
      .dense_panels = Fp32Tile<Avx2>::Dense,
      .panel_products = Fp32Tile<Avx2>::Products,
      .attend = AttentionTile<Avx2>::Attend,
      .merge = AttentionTile<Avx2>::MergeSaved,
      .to_half = RowTile<Avx2>::ToHalf,
      .rms_norm = RowTile<Avx2>::RmsNorm,
      .layer_norm = RowTile<Avx2>::LayerNorm,
      .rope = RowTile<Avx2>::Rope,
      .activate = RowTile<Avx2>::Activate,
      .add = RowTile<Avx2>::AddTo,
      .exp_sum = RowTile<Avx2>::ExpSum,
  };
  return kTable;
}

}  // namespace babai::cpu
