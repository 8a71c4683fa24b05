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

// The t-th of so many tiles that cut [0, n) evenly.
struct Tile {
  int64_t begin, end;
  Tile(int64_t t, int64_t tiles, int64_t n) : begin(t * n / tiles), end((t + 1) * n / tiles) {}
  int64_t size() const { return end - begin; }
};

// f(begin, size) for [begin, end) in even tiles of at most kRowTile rows.
template <class F>
inline void each_tile(int64_t begin, int64_t end, const F& f) {
  const int64_t tiles = (end - begin + kRowTile - 1) / kRowTile;
  for (int64_t t = 0; t < tiles; ++t) {
    const Tile tile(t, tiles, end - begin);
    f(begin + tile.begin, tile.size());
  }
}

// Rows [count, hidden] packed as [hidden, count], and their norms.
template <class T>
inline void pack_with_norms(const T* rows, int64_t count, int64_t hidden, T* packed, T* norm) {
  parallel_for((count + kPanel<T> - 1) / kPanel<T>, 4, [&](int64_t begin, int64_t end) {
    const int64_t j = begin * kPanel<T>, n = std::min(count, end * kPanel<T>) - j;
    row_norms<T>(rows + j * hidden, n, hidden, norm + j);
    pack_transposed<T>(rows + j * hidden, hidden, hidden, n, packed + j * hidden);
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
