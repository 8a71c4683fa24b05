// The numbers of the GPU kernels: what tensors hold, and the words that the tensor cores take. On a GPU its own conversions; on a CPU
// the same by bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define AK_DEVICE __device__ __forceinline__
#else
#define AK_DEVICE inline
#endif

namespace ak::cuda {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Operands of a tensor core; their sums are float. Float tensors are multiplied as tf32, the others as they are.
enum class Product { tf32, bf16, fp16 };

#ifdef __CUDACC__
AK_DEVICE float to_float(float x) { return x; }
AK_DEVICE float to_float(Bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
AK_DEVICE float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

AK_DEVICE void round_to(float x, float& to) { to = x; }
AK_DEVICE void round_to(float x, Bfloat16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
AK_DEVICE void round_to(float x, Float16& to) { to.bits = __half_as_ushort(__float2half_rn(x)); }

AK_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }

AK_DEVICE uint32_t tf32_word(float x) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  return word;
}

// Of a cell whose tensors hold T.
template <class T>
struct Math {
  // Numbers too small to be normal count as zero, which spares the instructions that would scale them.
  AK_DEVICE static float sigmoid(float x) {
    float power, share;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.44269504f * x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(1.0f + power));
    return share;
  }
  AK_DEVICE static float tanh(float x) { return ::tanhf(x); }
};
// One instruction, which errs by 2^-11; rounding to bfloat16 errs by 2^-9.
template <>
struct Math<Bfloat16> {
  AK_DEVICE static float sigmoid(float x) { return 0.5f + 0.5f * tanh(0.5f * x); }
  AK_DEVICE static float tanh(float x) {
    asm("tanh.approx.f32 %0, %0;" : "+f"(x));
    return x;
  }
};
#else
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(Bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(fraction), -24);
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

// To nearest, ties to even, as the GPU's cvt.rn.
inline void round_to(float x, float& to) { to = x; }
inline void round_to(float x, Bfloat16& to) {
  const uint32_t bits = bits_of(x);
  to.bits = static_cast<uint16_t>(std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void round_to(float x, Float16& to) {
  const uint16_t sign = static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (std::isnan(x)) {
    to.bits = 0x7fff;
  } else if (size >= 65520.0f) {
    to.bits = sign | 0x7c00;
  } else if (size < 0x1p-14f) {
    to.bits = static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(std::ldexp(size, 24))));
  } else {
    const uint32_t bits = bits_of(size) - (112u << 23);
    to.bits = static_cast<uint16_t>(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13);
  }
}

// To nearest, ties away from zero, as the GPU's cvt.rna.
inline uint32_t tf32_word(float x) { return std::isfinite(x) ? (bits_of(x) + 0x1000) & 0xffffe000 : bits_of(x); }

template <class T>
struct Math {
  static float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
  static float tanh(float x) { return std::tanh(x); }
};
#endif

template <class T>
AK_DEVICE T rounded(float x) {
  T to;
  round_to(x, to);
  return to;
}

// n neighbours, read and written at once.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T v[n];
};

// kPerWord neighbours along the depth of a product, as one word of an operand.
template <Product product>
struct Operand;
template <>
struct Operand<Product::tf32> {
  using Storage = float;
  static constexpr int kPerWord = 1;
  AK_DEVICE static uint32_t word(const float* x) { return tf32_word(x[0]); }
};
template <class T>
struct HalfOperand {
  using Storage = T;
  static constexpr int kPerWord = 2;
  AK_DEVICE static uint32_t word(const float* x) { return rounded<T>(x[0]).bits | static_cast<uint32_t>(rounded<T>(x[1]).bits) << 16; }
};
template <>
struct Operand<Product::bf16> : HalfOperand<Bfloat16> {};
template <>
struct Operand<Product::fp16> : HalfOperand<Float16> {};

// n neighbours of a tensor as words: halves in pairs.
template <class T, int n>
using Words = Pack<uint32_t, n * static_cast<int>(sizeof(T)) / 4>;
template <class T, int n>
AK_DEVICE Words<T, n> words_of(const float (&x)[n]) {
  Words<T, n> words;
#pragma unroll
  for (int i = 0; i < n * static_cast<int>(sizeof(T)) / 4; ++i) {
    if constexpr (sizeof(T) == 4)
      words.v[i] = bits_of(x[i]);
    else
      words.v[i] = HalfOperand<T>::word(x + 2 * i);
  }
  return words;
}

}  // namespace ak::cuda
