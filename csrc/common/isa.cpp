// Which instruction set the kernels run on: asked of the processor once, when the library is loaded.
#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace ak {
namespace {

Isa best_of_processor() {
#ifdef AK_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa choose() {
  const Isa best = best_of_processor();
  const char* asked = std::getenv("ALPHAKERNELS_ISA");
  if (asked == nullptr) return best;
  Isa wanted = best;
  if (std::strcmp(asked, "portable") == 0) wanted = Isa::portable;
  if (std::strcmp(asked, "avx2") == 0) wanted = Isa::avx2;
  if (std::strcmp(asked, "avx512") == 0) wanted = Isa::avx512;
  return wanted < best ? wanted : best;  // never above what the processor has
}

const Isa kChosen = choose();

}  // namespace

Isa isa() { return kChosen; }

const char* isa_name() {
  switch (kChosen) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

}  // namespace ak
