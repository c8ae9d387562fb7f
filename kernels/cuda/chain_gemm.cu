#include <algorithm>

#include "kernels/cuda/chain_gemm.cuh"

namespace babai::cuda {

extern template cudaError_t LaunchChainGemmBits<2>(const ChainGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);
extern template cudaError_t LaunchChainGemmBits<3>(const ChainGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);
extern template cudaError_t LaunchChainGemmBits<4>(const ChainGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);
extern template cudaError_t LaunchChainGemmBits<8>(const ChainGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);

namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

Shares ShareOut(int total, int shares) { return {total / shares, total % shares}; }

// Of one launch's half of the workspace, in bytes from its beginning.
struct Handed {
  int64_t at[kChainSteps - 1], squares[kChainSteps - 1], bytes;

  Handed(int hidden, int intermediate) {
    const int64_t tiles = CeilDiv(hidden, kTileCols) * kXTileBytes;
    const int64_t wide = CeilDiv(intermediate, kTileCols) * kXTileBytes;
    at[kStepO] = 0, at[kStepGateUp] = tiles, at[kStepDown] = tiles + wide;
    squares[kStepO] = at[kStepDown] + tiles, squares[kStepGateUp] = 0;
    squares[kStepDown] = squares[kStepO] + SquaresBytes(hidden);
    bytes = squares[kStepDown] + SquaresBytes(hidden);
  }
  static int64_t SquaresBytes(int hidden) {
    return int64_t{hidden} / kTileRows * kChainMaxTokens * static_cast<int64_t>(sizeof(float));
  }
};

constexpr int64_t kMailBytes = int64_t{kChainPass} * kStripTiles * kChainWarps * kLanes * 16;
constexpr int64_t kSquareSumsBytes = int64_t{kChainWarps} * kChainMaxTokens * 4;

int64_t RingBytes(const PackedShape& format, int slots) {
  return CeilDiv(int64_t{kChainWarps} * slots * format.record_bytes(), 128) * 128;
}

int64_t SharedBytes(const PackedShape& format, int slots) {
  return RingBytes(format, slots) + kMailBytes + kSquareSumsBytes;
}

bool SameFormat(const PackedShape& a, const PackedShape& b) {
  return a.bits == b.bits && a.group == b.group && a.asymmetric == b.asymmetric;
}

}  // namespace

bool TakesChainGemm(const ChainGemmArgs& args) {
  const PackedShape &o = args.o.shape, &gate_up = args.gate_up.shape, &down = args.down.shape;
  const bool last = args.qkv_linear.weights == nullptr;
  return args.m >= 1 && args.m <= kChainMaxTokens && SameFormat(o, gate_up) &&
         SameFormat(o, down) && (last || SameFormat(o, args.qkv_linear.shape)) &&
         gate_up.k == o.n && down.n == o.n && gate_up.n == 2 * down.k && o.n % kStripRows == 0 &&
         (last || args.qkv_linear.shape.k == o.n);
}

int64_t ChainGemmWorkspaceBytes(int hidden, int intermediate) {
  return Handed::SquaresBytes(hidden) + 2 * Handed(hidden, intermediate).bytes;
}

float* SquaresOfX(void* workspace) { return static_cast<float*>(workspace); }

ChainGemmPlan PlanChainGemm(const PackedShape& format, int sms, int64_t shared_bytes) {
  for (int slots = kChainMostSlots; slots >= 2; --slots) {
    if (SharedBytes(format, slots) <= shared_bytes) return {sms, slots, slots - 1};
  }
  return {};
}

cudaError_t LaunchChainGemm(const ChainGemmArgs& args, const ChainGemmPlan& plan, bool early_start,
                            cudaStream_t stream) {
  if (!TakesChainGemm(args) || plan.slots < 2 || plan.slots > kChainMostSlots ||
      plan.ahead >= plan.slots) {
    return cudaErrorInvalidValue;
  }
  const PackedShape& format = args.o.shape;
  const int hidden = args.o.shape.n;
  ChainGemmParams p{};
  for (const ChainLinear* linear : {&args.o, &args.gate_up, &args.down, &args.qkv_linear}) {
    if (linear->weights == nullptr) break;
    const PackedShape& s = linear->shape;
    p.steps[p.count++] = {static_cast<const uint8_t*>(linear->weights),
                          s.n,
                          s.k,
                          ShareOut(s.strips(), plan.blocks),
                          ShareOut(s.k_tiles(), kChainWarps),
                          s.strip_bytes(),
                          s.row_meta_offset(),
                          s.row_meta_offset() + int64_t{s.strips()} * kStripRows * 2};
  }
  p.m = args.m, p.hidden = hidden, p.hidden_inverse = 1.0f / static_cast<float>(hidden);
  p.attention = args.attention, p.x = args.x, p.qkv = args.qkv;
  p.mlp_norm = args.mlp_norm, p.next_norm = args.next_norm, p.eps = args.eps, p.gate = args.gate;
  const Handed handed(hidden, args.down.shape.k);
  uint8_t* const sets = static_cast<uint8_t*>(args.workspace) + Handed::SquaresBytes(hidden);
  uint8_t* const own = sets + args.turn * handed.bytes;
  for (int i = 0; i < kChainSteps - 1; ++i) {
    p.handed[i] = own + handed.at[i];
    p.squares[i] = reinterpret_cast<float*>(own + handed.squares[i]);
  }
  p.squares_before = SquaresOfX(args.workspace);
  p.clear = reinterpret_cast<uint4*>(sets + (1 - args.turn) * handed.bytes);
  p.clear_count = static_cast<int>(handed.bytes / static_cast<int64_t>(sizeof(uint4)));
  p.exponent = Fragment<4, __nv_bfloat16>::kExponent;
  p.slots = plan.slots, p.ahead = plan.ahead;
  p.mail = static_cast<int>(RingBytes(format, plan.slots));
  p.square_sums = p.mail + static_cast<int>(kMailBytes);

  const LaunchConfig config(dim3(plan.blocks), kChainWarps * kLanes,
                            SharedBytes(format, plan.slots), stream, early_start);
  switch (format.bits) {
    case 2:
      return LaunchChainGemmBits<2>(p, format, args.dtype, config);
    case 3:
      return LaunchChainGemmBits<3>(p, format, args.dtype, config);
    case 4:
      return LaunchChainGemmBits<4>(p, format, args.dtype, config);
    case 8:
      return LaunchChainGemmBits<8>(p, format, args.dtype, config);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace babai::cuda
