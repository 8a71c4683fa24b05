// Vectors of one register, in the compiler's own vector types: the same lines become SSE2 or NEON, AVX2 or AVX-512 code.
// A "pack" P is either Vec<T> (kLanes<T> elements) or, for rows shorter than a register, the bare T.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "isa.h"

namespace ak::AK_ISA {
namespace {  // internal linkage: a function compiled for AVX-512 must never be merged with its portable twin

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class T, int bytes>
struct Register {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using Vec = typename Register<T, kRegisterBytes>::type;

template <class T>
constexpr int64_t kLanes = kRegisterBytes / static_cast<int64_t>(sizeof(T));

template <class P, class T>
constexpr int64_t kWidth = static_cast<int64_t>(sizeof(P) / sizeof(T));

template <class P, class T>
inline P load(const T* p) {
  P v;
  std::memcpy(&v, p, sizeof(P));
  return v;
}

template <class P, class T>
inline void store(T* p, P v) {
  std::memcpy(p, &v, sizeof(P));
}

// Asks for n elements to come into the caches from this level on.
template <int level, class T>
inline void prefetch(const T* data, int64_t n) {
  for (int64_t j = 0; j < n; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(data + j, 0, 4 - level);
}

constexpr int64_t kStreamBytes = int64_t{16} << 20;  // of what is kept, from which on it goes past the caches

// Stores past the caches where a register is a whole line of them, which `p` must then begin: for what is read again only after the caches
// have seen much else. finish_streams() before another thread may read it.
template <class T>
inline void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    _mm512_stream_ps(p, (__m512)v);
  else
    _mm512_stream_pd(p, (__m512d)v);
#else
  store(p, v);
#endif
}
// n elements past the caches, to anywhere: what of a line they fill only in part goes the usual way.
template <class T>
inline void stream_copy(T* to, const T* from, int64_t n) {
  constexpr int64_t lanes = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t misplaced = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / sizeof(T)) % lanes;
  const int64_t head = std::min(n, misplaced == 0 ? 0 : lanes - misplaced);
  std::memcpy(to, from, static_cast<size_t>(head) * sizeof(T));
  int64_t j = head;
  for (; j + kLanes<T> <= n; j += kLanes<T>) stream(to + j, load<Vec<T>>(from + j));
  std::memcpy(to + j, from + j, static_cast<size_t>(n - j) * sizeof(T));
}
inline void finish_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

template <class P, class T>
inline P splat(T a) {
  return P{} + a;
}

// The larger, the smaller: b where they do not compare, so that maximum(limit, NaN) is NaN.
template <class P>
inline P maximum(P a, P b) {
#if defined(__AVX512F__)  // the compiler makes two instructions of the choice
  if constexpr (std::is_same_v<P, Vec<float>>) return (P)_mm512_maskz_max_ps(-1, (__m512)a, (__m512)b);
  if constexpr (std::is_same_v<P, Vec<double>>) return (P)_mm512_maskz_max_pd(-1, (__m512d)a, (__m512d)b);
#endif
  return a > b ? a : b;
}

template <class P>
inline P minimum(P a, P b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<P, Vec<float>>) return (P)_mm512_maskz_min_ps(-1, (__m512)a, (__m512)b);
  if constexpr (std::is_same_v<P, Vec<double>>) return (P)_mm512_maskz_min_pd(-1, (__m512d)a, (__m512d)b);
#endif
  return a < b ? a : b;
}

// Folds a vector in halves down to one lane: the same tree for every call, so that sums are reproducible.
template <class T, int bytes, class Join>
inline T fold_lanes(typename Register<T, bytes>::type v, const Join& join) {
  if constexpr (bytes == 16) {
    T a[16 / sizeof(T)];
    std::memcpy(a, &v, 16);
    if constexpr (sizeof(T) == 4) return join(join(a[0], a[2]), join(a[1], a[3]));
    return join(a[0], a[1]);
  } else {
    typename Register<T, bytes / 2>::type low, high;
    std::memcpy(&low, &v, bytes / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + bytes / 2, bytes / 2);
    return fold_lanes<T, bytes / 2>(join(low, high), join);
  }
}

struct Add {
  template <class P>
  P operator()(P a, P b) const {
    return a + b;
  }
};
struct Max {
  template <class P>
  P operator()(P a, P b) const {
    return a > b ? a : b;
  }
};

template <class T>
inline T sum_lanes(Vec<T> v) {
  return fold_lanes<T, kRegisterBytes>(v, Add{});
}

template <class T>
inline T max_lanes(Vec<T> v) {
  return fold_lanes<T, kRegisterBytes>(v, Max{});
}

// v with only its last `keep` lanes, the others `fill`.
template <class T>
inline Vec<T> keep_last(Vec<T> v, int64_t keep, T fill = 0) {
  Vec<T> lane;
  for (int64_t i = 0; i < kLanes<T>; ++i) lane[i] = static_cast<T>(i);
  return lane >= static_cast<T>(kLanes<T> - keep) ? v : splat<Vec<T>>(fill);
}

// The sum of f(Pack{}, column) over columns [0, n), each taken once. Sums shorter than a register go one by one.
template <class T, class F>
inline T sum_packs(int64_t n, const F& f) {
  constexpr int64_t lanes = kLanes<T>;
  if (n < lanes) {
    T total = 0;
    for (int64_t j = 0; j < n; ++j) total += f(T{}, j);
    return total;
  }
  Vec<T> total = {};
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) total += f(Vec<T>{}, j);
  if (j < n) total += keep_last<T>(f(Vec<T>{}, n - lanes), n - j);
  return sum_lanes<T>(total);
}

// Which lanes are not zero, NaN included, as bits from the lowest on.
template <class T>
inline uint32_t nonzero_lanes(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _cvtmask16_u32(_mm512_cmp_ps_mask((__m512)v, __m512{}, _CMP_NEQ_UQ));
  else
    return _cvtmask8_u32(_mm512_cmp_pd_mask((__m512d)v, __m512d{}, _CMP_NEQ_UQ));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, __m256{}, _CMP_NEQ_UQ)));
  else
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, __m256d{}, _CMP_NEQ_UQ)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < kLanes<T>; ++l) bits |= static_cast<uint32_t>(v[l] != 0) << l;
  return bits;
#endif
}

// Calls f(column) for every column of [0, n) in which x is not zero, in order.
template <class T, class F>
inline void each_nonzero(const T* x, int64_t n, const F& f) {
  int64_t j = 0;
  for (; j + kLanes<T> <= n; j += kLanes<T>)
    for (uint32_t bits = nonzero_lanes<T>(load<Vec<T>>(x + j)); bits != 0; bits &= bits - 1) f(j + __builtin_ctz(bits));
  for (; j < n; ++j)
    if (x[j] != 0) f(j);
}

// Calls f(Pack{}, column) so that columns [0, n) are covered by packs; the last pack overlaps the one before it instead
// of running over the end, so f must be idempotent. Rows shorter than a register are taken one element at a time.
template <class T, class F>
inline void for_each_pack(int64_t n, const F& f) {
  constexpr int64_t lanes = kLanes<T>;
  if (n < lanes) {
    for (int64_t j = 0; j < n; ++j) f(T{}, j);
    return;
  }
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) f(Vec<T>{}, j);
  if (j < n) f(Vec<T>{}, n - lanes);
}

// Calls f(Pack{}, column) with every column in exactly one pack, the last few as single elements: for sums held in memory.
template <class T, class F>
inline void each_column_once(int64_t n, const F& f) {
  int64_t j = 0;
  for (; j + kLanes<T> <= n; j += kLanes<T>) f(Vec<T>{}, j);
  for (; j < n; ++j) f(T{}, j);
}

template <class T>
inline void multiply_elements(const T* a, const T* b, T* product, int64_t n) {
  for_each_pack<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    store(product + j, static_cast<P>(load<P>(a + j) * load<P>(b + j)));
  });
}

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23;
  static constexpr Int bias = 127;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float exp_limit = 87.0f;
};
template <>
struct Bits<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52;
  static constexpr Int bias = 1023;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_hi = 6.93145751953125e-1, ln2_lo = 1.42860682030941723212e-6;
  static constexpr double exp_limit = 708.0;
};

// The integers behind a pack of floats, lane by lane.
template <class P, class T>
struct IntPack {
  typedef typename Bits<T>::Int type __attribute__((vector_size(sizeof(P))));
};
template <class T>
struct IntPack<T, T> {
  using type = typename Bits<T>::Int;
};

// The integer nearest to x, for |x| < 2^22 (float64: 2^51).
template <class P, class T>
inline P nearest(P x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<P, Vec<float>>) return (P)_mm512_maskz_roundscale_ps(-1, (__m512)x, 0);
  if constexpr (std::is_same_v<P, Vec<double>>) return (P)_mm512_maskz_roundscale_pd(-1, (__m512d)x, 0);
#endif
  return (x + Bits<T>::round_magic) - Bits<T>::round_magic;
}

// p 2^k for an integer k that leaves a normal number; with AVX-512 for any.
template <class P, class T>
inline P scale(P p, P k) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<P, Vec<float>>) return (P)_mm512_maskz_scalef_ps(-1, (__m512)p, (__m512)k);
  if constexpr (std::is_same_v<P, Vec<double>>) return (P)_mm512_maskz_scalef_pd(-1, (__m512d)p, (__m512d)k);
#endif
  using B = Bits<T>;
  using I = typename IntPack<P, T>::type;
  const P shifted = k + B::round_magic;  // its low mantissa bits hold the integer k
  const T magic = B::round_magic;
  typename B::Int magic_bits;
  std::memcpy(&magic_bits, &magic, sizeof(T));
  I bits;
  std::memcpy(&bits, &shifted, sizeof(P));
  bits = (bits - magic_bits + B::bias) << B::mantissa;
  P two_k;
  std::memcpy(&two_k, &bits, sizeof(P));
  return p * two_k;
}

// exp(r) - 1 for |r| <= ln2 / 2 is r times a polynomial: in float32 fitted to a relative error of 4e-9 of exp(r), in float64 1/k!; from
// the highest power down.
template <class T>
struct Series;
template <>
struct Series<float> {
  static constexpr int length = 6;
  static constexpr float coefficients[length] = {1.3814467e-3f, 8.3687808e-3f, 4.1668393e-2f, 1.6666520e-1f, 4.9999994e-1f, 1.0f};
};
template <>
struct Series<double> {
  static constexpr int length = 13;
  static constexpr double coefficients[length] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                                                  1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
                                                  1.0 / 6.0,          0.5,               1.0};
};

// x = k ln 2 + r with an integer k: exp(x) = 2^k exp(r).
template <class P, class T>
struct Exponent {
  P k, r, p;  // p = (exp(r) - 1) / r
  explicit Exponent(P x) {
    using B = Bits<T>;
    k = nearest<P, T>(x * static_cast<T>(1.4426950408889634));
    r = (x - k * B::ln2_hi) - k * B::ln2_lo;
    p = splat<P, T>(Series<T>::coefficients[0]);
#pragma GCC unroll 16
    for (int i = 1; i < Series<T>::length; ++i) p = p * r + Series<T>::coefficients[i];
  }
};

// x within [-limit, limit]. A NaN stays one: it is the operand that a failed comparison leaves.
template <class P, class T>
inline P clamp(P x, T limit) {
  return maximum<P>(splat<P, T>(-limit), minimum<P>(splat<P, T>(limit), x));
}

// exp(x) for |x| <= exp_limit, to which larger ones are clamped. Within 1.5 ulp of the exact value.
template <class P, class T>
inline P exp(P x) {
  const Exponent<P, T> e(clamp<P, T>(x, Bits<T>::exp_limit));
  return scale<P, T>(e.p * e.r + static_cast<T>(1), e.k);
}

// exp(x) = t (1 + m) for a sigmoid and a tanh, which ask for less than exp does: an error of |x| 6e-8 of exp(x) stays below 1e-7 there.
// Beyond exp_limit t may be 0 or infinite.
template <class P, class T>
struct Power {
  P t, m;
  explicit Power(P x) {
    const Exponent<P, T> e(clamp<P, T>(x, Bits<T>::exp_limit));
    t = scale<P, T>(splat<P, T>(1), e.k);
    m = e.p * e.r;
  }
};

#if defined(__AVX512F__)
// By tables that are a register each: x log2(e) = y + r with y a multiple of 1/16, t = 2^y rounded, m = 2^r - 1 and what the rounding took;
// r is so short that three terms are enough, the second with its share of the fourth.
alignas(64) constexpr float kSixteenths[16] = {
    1.0f,        1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
    1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
alignas(64) constexpr float kSixteenthsRest[16] = {
    0.0f,         4.62855e-08f,  -1.19922e-08f, 4.72978e-08f, 3.19342e-08f,  3.62106e-08f,  -3.09907e-08f, -7.47521e-09f,
    1.71143e-08f, -3.04768e-08f, 5.23333e-09f,  6.10759e-09f, -1.47196e-08f, -5.25880e-09f, -6.12826e-09f, 5.14061e-09f};
template <>
struct Power<Vec<float>, float> {
  Vec<float> t, m;
  explicit Power(Vec<float> x) {
    const __m512 z = (__m512)(x * 1.44269504f);
    const __m512 magic = _mm512_set1_ps(786432.0f);  // 1.5 * 2^19: added, it leaves 16 y in the lowest bits, of which four choose the entries
    const __m512 shifted = _mm512_add_ps(z, magic);
    const __m512i entry = _mm512_castps_si512(shifted);
    const __m512 power = _mm512_maskz_permutexvar_ps(-1, entry, _mm512_load_ps(kSixteenths));
    const auto rest = (Vec<float>)_mm512_maskz_permutexvar_ps(-1, entry, _mm512_load_ps(kSixteenthsRest));
    t = (Vec<float>)_mm512_maskz_scalef_ps(-1, power, _mm512_sub_ps(shifted, magic));
    const auto r = (Vec<float>)_mm512_maskz_reduce_ps(-1, z, 4 << 4 | _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);  // 0 of inf
    m = ((r * 0.055504109f + 0.24023429f) * r + 0.69314718f) * r + rest;
  }
};
#endif

// tanh(x) = d / (d + 2) with d = exp(2 x) - 1 = t m + (t - 1): for small x t is 1 and nothing cancels.
template <class P, class T>
inline P tanh(P x) {
  const Power<P, T> e(minimum<P>(splat<P, T>(40), x + x));  // beyond 20 it is 1
  const P d = e.t * e.m + (e.t - static_cast<T>(1));
  return d / (d + static_cast<T>(2));
}

template <class P, class T>
inline P sigmoid(P x) {
  const Power<P, T> e(-x);
  return static_cast<T>(1) / (e.t * (e.m + static_cast<T>(1)) + static_cast<T>(1));
}

// log(x) for normal x > 0: x = m 2^k with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)) by its series.
template <class P, class T>
inline P log(P x) {
  using B = Bits<T>;
  using I = typename IntPack<P, T>::type;
  I bits;
  std::memcpy(&bits, &x, sizeof(P));
  const T root = static_cast<T>(0.70710678118654752);
  typename B::Int root_bits;
  std::memcpy(&root_bits, &root, sizeof(T));
  const I k = (bits - root_bits) >> B::mantissa;
  const I mantissa = bits - (k << B::mantissa);
  P m, exponent;
  std::memcpy(&m, &mantissa, sizeof(P));
  if constexpr (sizeof(P) == sizeof(T))
    exponent = static_cast<T>(k);
  else
    exponent = __builtin_convertvector(k, P);
  const P s = (m - static_cast<T>(1)) / (m + static_cast<T>(1)), s2 = s * s;
  constexpr int terms = sizeof(T) == 4 ? 6 : 12;
  P p = splat<P, T>(static_cast<T>(1) / (2 * terms + 1));
#pragma GCC unroll 16
  for (int i = terms - 1; i > 0; --i) p = p * s2 + static_cast<T>(1) / static_cast<T>(2 * i + 1);
  const P tail = s2 * p;  // artanh(s) = s + s * tail
  return exponent * B::ln2_hi + (2 * s + (2 * s * tail + exponent * B::ln2_lo));
}

}  // namespace
}  // namespace ak::AK_ISA
