// Matrix products of operands that already sit in the cache, as a recurrence multiplies its tile of rows by its weights at every
// step: a register block of C is kept from the first k to the last. No packing of A, no threads; sizes that no block divides are
// the caller's to pad. The order of every sum depends on k alone, not on where a row stands.
#pragma once

#include "simd.h"

namespace ak::AK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kGemmRows = 8, kGemmVectors = 3;  // of 32 registers 24 hold C
#elif defined(__AVX2__)
constexpr int64_t kGemmRows = 4, kGemmVectors = 3;  // of 16 registers 12 hold C
#else
constexpr int64_t kGemmRows = 4, kGemmVectors = 2;
#endif
// A multiple of every instruction set's block of rows: what tiles are padded to.
constexpr int64_t kGemmPad = 8;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The right operand: rows of `vectors` registers. Packed, it is cut into the column panels that the product goes through, each
// [depth, panel] without gaps; otherwise it is row-major.
template <class T>
struct Right {
  const T* data;
  int64_t stride;  // of row-major rows; 0: packed
  int64_t depth;   // rows of the whole packed matrix

  const T* panel(int64_t first) const { return data + first * kLanes<T> * (stride > 0 ? 1 : depth); }
  int64_t row(int64_t width) const { return stride > 0 ? stride : width * kLanes<T>; }
};

// Calls f(first, width) for the column panels of a matrix `vectors` registers wide, as even as they can be.
template <class F>
inline void for_each_panel(int64_t vectors, const F& f) {
  const int64_t panels = (vectors + kGemmVectors - 1) / kGemmVectors;
  for (int64_t p = 0; p < panels; ++p) f(vectors * p / panels, vectors * (p + 1) / panels - vectors * p / panels);
}

// Packs the [depth, vectors * kLanes] matrix whose elements are at(k, column) into panels.
template <class T, class At>
inline void pack_panels(T* packed, int64_t depth, int64_t vectors, const At& at) {
  for_each_panel(vectors, [&](int64_t first, int64_t width) {
    T* panel = packed + first * kLanes<T> * depth;
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < width * kLanes<T>; ++j) panel[k * width * kLanes<T> + j] = at(k, first * kLanes<T> + j);
  });
}

template <class T, int64_t width, bool kLeftByRow, bool kAdd>
inline void gemm_block(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* c, int64_t c_stride) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> sum[kGemmRows][width];
#pragma GCC unroll 8
  for (int64_t i = 0; i < kGemmRows; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < width; ++j) sum[i][j] = kAdd ? load<Vec<T>>(c + i * c_stride + j * lanes) : Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> right[width];
#pragma GCC unroll 4
    for (int64_t j = 0; j < width; ++j) right[j] = load<Vec<T>>(b + k * b_stride + j * lanes);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kGemmRows; ++i) {
      const T left = kLeftByRow ? a[i * a_stride + k] : a[k * a_stride + i];
#pragma GCC unroll 4
      for (int64_t j = 0; j < width; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kGemmRows; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < width; ++j) store(c + i * c_stride + j * lanes, sum[i][j]);
}

// C [rows, vectors * kLanes] = (kAdd: +=) A B over `depth`; rows a multiple of kGemmRows, C's rows c_stride apart. Element (i, k)
// of A is at a[i * a_stride + k] where kLeftByRow, else (A transposed in memory) at a[k * a_stride + i].
template <class T, bool kLeftByRow, bool kAdd>
inline void tile_gemm(int64_t rows, int64_t vectors, int64_t depth, const T* a, int64_t a_stride, const Right<T>& b, T* c,
                      int64_t c_stride) {
  for_each_panel(vectors, [&](int64_t first, int64_t width) {
    const T* panel = b.panel(first);
    const int64_t b_stride = b.row(width);
    for (int64_t i = 0; i < rows; i += kGemmRows) {
      const T* left = a + i * (kLeftByRow ? a_stride : 1);
      T* out = c + i * c_stride + first * kLanes<T>;
      if (width == 1)
        gemm_block<T, 1, kLeftByRow, kAdd>(depth, left, a_stride, panel, b_stride, out, c_stride);
      else if (width == 2)
        gemm_block<T, 2, kLeftByRow, kAdd>(depth, left, a_stride, panel, b_stride, out, c_stride);
      else
        gemm_block<T, 3, kLeftByRow, kAdd>(depth, left, a_stride, panel, b_stride, out, c_stride);
    }
  });
}

}  // namespace
}  // namespace ak::AK_ISA
