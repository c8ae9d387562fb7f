#include "kernels/cpu/simd_avx512.h"
// The tiles need the lanes above.
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/fp32_tile.h"
#include "kernels/cpu/int8_tile.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tile.h"

namespace babai::cpu {

const KernelTable& Avx512Kernels() {
  static constexpr KernelTable kTable = {
      .quantize = Int8Tile<Avx512>::Quantize,
      .int8_block = Int8Tile<Avx512>::Run,
      .exact_panels = Fp32Tile<Avx512>::Exact,
      .dense_panels = Fp32Tile<Avx512>::Dense,
      .panel_products = Fp32Tile<Avx512>::Products,
      .attend = AttentionTile<Avx512>::Attend,
      .merge = AttentionTile<Avx512>::MergeSaved,
      .to_half = RowTile<Avx512>::ToHalf,
      .rms_norm = RowTile<Avx512>::RmsNorm,
      .layer_norm = RowTile<Avx512>::LayerNorm,
      .rope = RowTile<Avx512>::Rope,
      .activate = RowTile<Avx512>::Activate,
      .add = RowTile<Avx512>::AddTo,
      .exp_sum = RowTile<Avx512>::ExpSum,
  };
  return kTable;
}

}  // namespace babai::cpu
