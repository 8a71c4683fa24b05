// Cosine similarities of rows, tile by tile: what concept attention and hidden concepts share. The 1e-6 beside the norms is Qlib's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../common/gemm.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kRowTile = 4 * kTileRows, kColumnTile = 256;  // a tile of similarities stays in L2
template <class T>
constexpr T kCosineEps = static_cast<T>(1e-6);

template <class T>
inline T row_dot(const T* a, const T* b, int64_t n) {
  return sum_packs<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    return static_cast<P>(load<P>(a + j) * load<P>(b + j));
  });
}

template <class T>
inline void row_norms(const T* x, int64_t rows, int64_t hidden, T* norm) {
  for (int64_t i = 0; i < rows; ++i) norm[i] = std::sqrt(row_dot(x + i * hidden, x + i * hidden, hidden));
}

// y[j] += a * x[j]
template <class T>
inline void add_scaled(T a, const T* x, T* y, int64_t n) {
  each_column_once<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    store(y + j, static_cast<P>(load<P>(y + j) + a * load<P>(x + j)));
  });
}

// f(day) for every day: days side by side, one day with all threads to itself.
template <class F>
inline void for_each_day(int64_t days, const F& f) {
  if (days == 1) return f(int64_t{0});
  parallel_for(days, 1, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) f(d);
  });
}

}  // namespace
}  // namespace ak::AK_ISA
