#include "kernels/cpu/isa.h"

#include <atomic>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {
namespace {

// libgcc's CPU model asks XGETBV too: a set that the operating system does not save is not there.
bool HasAvx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool HasAvx512Vnni() {
#if defined(__x86_64__)
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

Isa BestIsa() { return HasAvx512Vnni() ? Isa::kAvx512Vnni : HasAvx2() ? Isa::kAvx2 : Isa::kScalar; }

const KernelTable* TableOf(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Vnni) return &Avx512Kernels();
  if (isa == Isa::kAvx2) return &Avx2Kernels();
#endif
  return &ScalarKernels();
}

struct Active {
  std::atomic<Isa> isa{BestIsa()};
  std::atomic<const KernelTable*> table{TableOf(isa)};
};

Active& TheActive() {
  static Active active;
  return active;
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

bool IsaSupported(Isa isa) { return isa <= BestIsa(); }

Isa ActiveIsa() { return TheActive().isa; }

bool SetIsa(Isa isa) {
  if (!IsaSupported(isa)) return false;
  TheActive().isa = isa;
  TheActive().table = TableOf(isa);
  return true;
}

const KernelTable& Kernels() { return *TheActive().table.load(std::memory_order_relaxed); }

}  // namespace babai::cpu
