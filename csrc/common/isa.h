// One source, several instruction sets. Every file in csrc/cpu is compiled once for each of them into its own namespace
// (AK_ISA), and the processor chooses at load: a wheel built on one machine runs on any other, at that machine's speed.
#pragma once

#ifndef AK_ISA
#define AK_ISA portable
#endif

// Declares the same functions in the namespace of every instruction set.
#define AK_FOR_EACH_ISA(...)                \
  namespace ak::portable { __VA_ARGS__ }    \
  namespace ak::avx2 { __VA_ARGS__ }        \
  namespace ak::avx512 { __VA_ARGS__ }

namespace ak {

enum class Isa { portable, avx2, avx512 };

// The best instruction set of this processor, or the lower one that the environment variable ALPHAKERNELS_ISA asks for.
Isa isa();
const char* isa_name();

}  // namespace ak

#ifdef AK_X86
#define AK_DISPATCH(...)                                        \
  do {                                                          \
    switch (ak::isa()) {                                        \
      case ak::Isa::avx512: ak::avx512::__VA_ARGS__; break;     \
      case ak::Isa::avx2: ak::avx2::__VA_ARGS__; break;         \
      case ak::Isa::portable: ak::portable::__VA_ARGS__; break; \
    }                                                           \
  } while (false)
#else
#define AK_DISPATCH(...) ak::portable::__VA_ARGS__
#endif
