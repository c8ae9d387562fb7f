#include "kernels/cpu/simd_scalar.h"
// The tiles need the lanes above.
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/fp32_tile.h"
#include "kernels/cpu/int8_tile.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tile.h"

namespace babai::cpu {

const KernelTable& ScalarKernels() {
  static constexpr KernelTable kTable = {
      .quantize = Int8Tile<Scalar>::Quantize,
      .int8_block = Int8Tile<Scalar>::Run,
      .exact_panels = Fp32Tile<Scalar>::Exact,
      .dense_panels = Fp32Tile<Scalar>::Dense,
      .panel_products = Fp32Tile<Scalar>::Products,
      .attend = AttentionTile<Scalar>::Attend,
      .merge = AttentionTile<Scalar>::MergeSaved,
      .to_half = RowTile<Scalar>::ToHalf,
      .rms_norm = RowTile<Scalar>::RmsNorm,
      .layer_norm = RowTile<Scalar>::LayerNorm,
      .rope = RowTile<Scalar>::Rope,
      .activate = RowTile<Scalar>::Activate,
      .add = RowTile<Scalar>::AddTo,
      .exp_sum = RowTile<Scalar>::ExpSum,
  };
  return kTable;
}

}  // namespace babai::cpu
