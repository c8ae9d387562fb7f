// Which instruction set the CPU kernels use. Chosen once from what the processor and the operating
// system offer; tests may choose a lesser one.
#pragma once

namespace babai::cpu {

enum class Isa {
  kScalar,      // plain C++, any processor
  kAvx2,        // AVX2, FMA, F16C
  kAvx512Vnni,  // AVX-512 F, BW, DQ, VL and VNNI
};

const char* IsaName(Isa isa);

bool IsaSupported(Isa isa);

// The best supported one, unless SetIsa() said otherwise.
Isa ActiveIsa();

// For tests and benches. False, and nothing changes, if the processor lacks it. Must not run
// beside a kernel. Weights made before stay valid: layouts do not depend on the instruction set.
bool SetIsa(Isa isa);

}  // namespace babai::cpu
