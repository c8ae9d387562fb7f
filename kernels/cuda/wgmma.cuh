// Hopper's warpgroup products and tensor copies: what wide_gemm.cuh needs beyond ptx.cuh.
// Names and semantics: NVIDIA's PTX ISA 9.0, sections wgmma and cp.async.bulk.tensor.
#pragma once

#include <cuda.h>

#include "kernels/cuda/ptx.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Copies the box at column `col` and row `row` of the matrix that `map` describes; what lies
// outside it reads as zero. Counts the box's bytes off `bar`.
__device__ __forceinline__ void TensorCopy(uint32_t dst, const CUtensorMap* map, int col, int row,
                                           uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(dst),
      "l"(map), "r"(col), "r"(row), "r"(bar)
      : "memory");
}

// What generic accesses have written and this thread has seen is there for products too.
__device__ __forceinline__ void ProxyFence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Operand B at shared address `addr`: rows of 64 16-bit elements along k, 128 bytes swizzled (as a
// TensorCopy with CU_TENSOR_MAP_SWIZZLE_128B leaves them), eight rows every 1024 bytes. Its
// descriptor; 16 bytes further on it is larger by one.
__device__ __forceinline__ uint64_t SwizzledOperand(uint32_t addr) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | addr >> 4;
}

// The same bytes for WarpgroupMmaTransposed(): rows of 64 columns of B for each k, and `next` bytes
// on those of the next 64 columns. Its descriptor; eight rows further on it is larger by 64.
__device__ __forceinline__ uint64_t TransposedOperand(uint32_t addr, uint32_t next) {
  return SwizzledOperand(addr) | uint64_t{next >> 4} << 16;
}

// Before the first product and after registers that products read or write were touched.
__device__ __forceinline__ void WarpgroupFence() { asm volatile("wgmma.fence.sync.aligned;" ::); }
__device__ __forceinline__ void WarpgroupCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::);
}
// Returns when at most kPending committed groups of products are under way.
template <int kPending>
__device__ __forceinline__ void WarpgroupWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending));
}
// Registers of a thread from here on, for a whole warpgroup.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
// Keeps the compiler from moving uses of `d` across.
template <int kSize>
__device__ __forceinline__ void PinRegisters(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define BABAI_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BABAI_D8(i) BABAI_D4(i), BABAI_D4(i + 4)
#define BABAI_D16(i) BABAI_D8(i), BABAI_D8(i + 8)
#define BABAI_D32(i) BABAI_D16(i), BABAI_D16(i + 16)
#define BABAI_D64(i) BABAI_D32(i), BABAI_D32(i + 32)
#define BABAI_D96(i) BABAI_D64(i), BABAI_D32(i + 64)
#define BABAI_D128(i) BABAI_D64(i), BABAI_D64(i + 64)
// The accumulators come first, then four registers of A, then B: `d`, `a` and `b` name them. `how`:
// whether to add to d, signs of A and B, whether B is transposed.
#define BABAI_WGMMA_HOW(how, shape, type, d_names, a_names, b_name, ...)                \
  asm volatile("wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" d_names \
               "}, {" a_names "}, " b_name ", " how ";"                                 \
               : __VA_ARGS__                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define BABAI_WGMMA(...) BABAI_WGMMA_HOW("1, 1, 1, 0", __VA_ARGS__)

#define BABAI_D_NAMES_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define BABAI_D_NAMES_64                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BABAI_D_NAMES_128                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BABAI_D_NAMES_192                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BABAI_D_NAMES_256                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d += a * b on 64 rows x kTokens x 16, fp32 accumulation; asynchronous. b: a SwizzledOperand().
template <typename T, int kTokens>
__device__ __forceinline__ void WarpgroupMma(float (&d)[kTokens / 2], const uint32_t (&a)[4],
                                             uint64_t b) {
  constexpr bool kHalf = __is_same(T, __half);
  if constexpr (kTokens == 32 && kHalf) {
    BABAI_WGMMA("m64n32k16", "f16", BABAI_D_NAMES_32, "%16, %17, %18, %19", "%20", BABAI_D16(0));
  } else if constexpr (kTokens == 32) {
    BABAI_WGMMA("m64n32k16", "bf16", BABAI_D_NAMES_32, "%16, %17, %18, %19", "%20", BABAI_D16(0));
  } else if constexpr (kTokens == 64 && kHalf) {
    BABAI_WGMMA("m64n64k16", "f16", BABAI_D_NAMES_64, "%32, %33, %34, %35", "%36", BABAI_D32(0));
  } else if constexpr (kTokens == 64) {
    BABAI_WGMMA("m64n64k16", "bf16", BABAI_D_NAMES_64, "%32, %33, %34, %35", "%36", BABAI_D32(0));
  } else if constexpr (kTokens == 128 && kHalf) {
    BABAI_WGMMA("m64n128k16", "f16", BABAI_D_NAMES_128, "%64, %65, %66, %67", "%68", BABAI_D64(0));
  } else if constexpr (kTokens == 128) {
    BABAI_WGMMA("m64n128k16", "bf16", BABAI_D_NAMES_128, "%64, %65, %66, %67", "%68", BABAI_D64(0));
  } else if constexpr (kTokens == 192 && kHalf) {
    BABAI_WGMMA("m64n192k16", "f16", BABAI_D_NAMES_192, "%96, %97, %98, %99", "%100", BABAI_D96(0));
  } else if constexpr (kTokens == 192) {
    BABAI_WGMMA("m64n192k16", "bf16", BABAI_D_NAMES_192, "%96, %97, %98, %99", "%100",
                BABAI_D96(0));
  } else if constexpr (kTokens == 256 && kHalf) {
    BABAI_WGMMA("m64n256k16", "f16", BABAI_D_NAMES_256, "%128, %129, %130, %131", "%132",
                BABAI_D128(0));
  } else if constexpr (kTokens == 256) {
    BABAI_WGMMA("m64n256k16", "bf16", BABAI_D_NAMES_256, "%128, %129, %130, %131", "%132",
                BABAI_D128(0));
  } else {
    static_assert(kTokens == 32, "no such product");
  }
}

// d = a * b on 64 rows x 128 x 16 in fp16; else as above.
__device__ __forceinline__ void WarpgroupMmaAnew(float (&d)[64], const uint32_t (&a)[4],
                                                 uint64_t b) {
  BABAI_WGMMA_HOW("0, 1, 1, 0", "m64n128k16", "f16", BABAI_D_NAMES_128, "%64, %65, %66, %67", "%68",
                  BABAI_D64(0));
}
// d += a * b on 64 rows x kCols x 16 in fp16. b: a TransposedOperand().
template <int kCols>
__device__ __forceinline__ void WarpgroupMmaTransposed(float (&d)[kCols / 2],
                                                       const uint32_t (&a)[4], uint64_t b) {
  if constexpr (kCols == 64) {
    BABAI_WGMMA_HOW("1, 1, 1, 1", "m64n64k16", "f16", BABAI_D_NAMES_64, "%32, %33, %34, %35", "%36",
                    BABAI_D32(0));
  } else {
    static_assert(kCols == 128, "no such product");
    BABAI_WGMMA_HOW("1, 1, 1, 1", "m64n128k16", "f16", BABAI_D_NAMES_128, "%64, %65, %66, %67",
                    "%68", BABAI_D64(0));
  }
}

#undef BABAI_D_NAMES_32
#undef BABAI_D_NAMES_64
#undef BABAI_D_NAMES_128
#undef BABAI_D_NAMES_192
#undef BABAI_D_NAMES_256
#undef BABAI_WGMMA
#undef BABAI_WGMMA_HOW
#undef BABAI_D128
#undef BABAI_D96
#undef BABAI_D64
#undef BABAI_D32
#undef BABAI_D16
#undef BABAI_D8
#undef BABAI_D4

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
