// Matrix products of one thread, blocked for registers: C = A B for row-major matrices of the sizes that deep models have (tens to
// a few hundred columns). B is packed once into panels of kPanel columns, A is read where it lies, and a tile of kTileRows x kPanel
// of C stays in registers while the depth runs through. Callers cut the rows over threads; a tile's sum runs through the depth in
// order, so its value does not depend on the cut.
//
// Measured on Zen 4, [4096, 128] x [128, 256] on two cores: 225 GFLOP/s, where the BLAS of PyTorch's wheels reaches 155.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <utility>

#include "block_pool.h"
#include "huge_pages.h"
#include "simd.h"

namespace ak::AK_ISA {
namespace {

// A tile's accumulators with the row of B fill the registers: 32 with AVX-512, 16 before it.
constexpr int kTileRows = kRegisterBytes == 64 ? 12 : 6;
constexpr int kTileVectors = 2;
template <class T>
constexpr int64_t kPanel = kTileVectors * kLanes<T>;

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Scratch memory on a cache line, not initialised.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const int64_t bytes = round_up(std::max<int64_t>(count, 1) * static_cast<int64_t>(sizeof(T)), 64);
    if (is_pooled(bytes)) {
      data_ = static_cast<T*>(block_.emplace(bytes).data());
      return;
    }
    data_ = static_cast<T*>(::operator new(static_cast<size_t>(bytes), std::align_val_t(64)));
    if (bytes >= int64_t{1} << 22) advise_huge_pages(data_, static_cast<size_t>(bytes));
  }
  ~Scratch() {
    if (!block_.has_value()) ::operator delete(data_, std::align_val_t(64));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }

 private:
  std::optional<Block> block_;
  T* data_;
};

// Elements of a packed [depth, columns] matrix: whole panels.
template <class T>
int64_t packed_size(int64_t depth, int64_t columns) {
  return depth * round_up(columns, kPanel<T>);
}

// Packs the matrix whose element (k, j) is value(k, j) into panels [panel][depth][kPanel]; columns beyond the last are zero.
template <class T, class F>
inline void pack_panels(int64_t depth, int64_t columns, T* packed, const F& value) {
  constexpr int64_t width = kPanel<T>;
  for (int64_t j0 = 0; j0 < columns; j0 += width) {
    const int64_t n = std::min(width, columns - j0);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t j = 0; j < n; ++j) packed[j] = value(k, j0 + j);
      for (int64_t j = n; j < width; ++j) packed[j] = 0;
      packed += width;
    }
  }
}

// Row-major b [depth, columns] with rows `stride` elements apart.
template <class T>
inline void pack(const T* b, int64_t stride, int64_t depth, int64_t columns, T* packed) {
  pack_panels(depth, columns, packed, [=](int64_t k, int64_t j) { return b[k * stride + j]; });
}

// Copies columns [0, n) of a row into panels of `width` columns, each the row-th of `rows` rows; the last panel ends in zeros.
template <int64_t width, class T>
inline void pack_row(const T* from, int64_t n, T* panels, int64_t rows, int64_t row) {
  T* to = panels + row * width;
  int64_t j = 0;
  for (; j + width <= n; j += width, to += rows * width) std::memcpy(to, from + j, width * sizeof(T));
  if (j == n) return;
  for (int64_t r = 0; r < width; ++r) to[r] = j + r < n ? from[j + r] : T{0};
}

// One stage of a transpose in registers (Eklundh): rows r and r + step exchange the blocks that lie across the diagonal.
template <class T, int step, bool high, size_t... lane>
inline Vec<T> exchange(Vec<T> a, Vec<T> b, std::index_sequence<lane...>) {
  constexpr int lanes = sizeof...(lane);
  if constexpr (high)
    return __builtin_shufflevector(a, b, (lane & step ? lanes + static_cast<int>(lane) : static_cast<int>(lane) + step)...);
  else
    return __builtin_shufflevector(a, b, (lane & step ? lanes + static_cast<int>(lane) - step : static_cast<int>(lane))...);
}

template <class T, int step = 1>
inline void transpose(Vec<T>* rows) {
  constexpr int lanes = kLanes<T>;
  if constexpr (step < lanes) {
#pragma GCC unroll 16
    for (int r = 0; r < lanes; ++r)
      if ((r & step) == 0) {
        const Vec<T> a = rows[r], b = rows[r + step];
        rows[r] = exchange<T, step, false>(a, b, std::make_index_sequence<lanes>{});
        rows[r + step] = exchange<T, step, true>(a, b, std::make_index_sequence<lanes>{});
      }
    transpose<T, 2 * step>(rows);
  }
}

// Writes n <= kLanes rows of row-major b [n, depth] as columns: element (k, j) to to[k * to_stride + j], zeros for j from n on.
template <class T>
inline void transpose_lanes(const T* b, int64_t stride, int64_t depth, int64_t n, T* to, int64_t to_stride) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t k = 0;
  if (n == lanes)
    for (; k + lanes <= depth; k += lanes) {
      Vec<T> block[lanes];
      for (int64_t r = 0; r < lanes; ++r) block[r] = load<Vec<T>>(b + r * stride + k);
      transpose<T>(block);
      for (int64_t r = 0; r < lanes; ++r) store(to + (k + r) * to_stride, block[r]);
    }
  for (; k < depth; ++k)
    for (int64_t r = 0; r < lanes; ++r) to[k * to_stride + r] = r < n ? b[r * stride + k] : T{0};
}

// The transpose of row-major b [columns, depth]: the weight of a linear layer, so that A times it is x @ weight.T.
template <class T>
inline void pack_transposed(const T* b, int64_t stride, int64_t depth, int64_t columns, T* packed) {
  constexpr int64_t width = kPanel<T>, lanes = kLanes<T>;
  for (int64_t j0 = 0; j0 < columns; j0 += width, packed += depth * width)
    for (int64_t j = 0; j < width; j += lanes)
      transpose_lanes<T>(b + std::min(j0 + j, columns) * stride, stride, depth, std::clamp<int64_t>(columns - j0 - j, 0, lanes),
                         packed + j, width);
}

// A as the product reads it: element (i, k) is data[i * row + k * step].
template <class T>
struct Operand {
  const T* data;
  int64_t row, step;
};

// B as the product reads it: columns [j, j + kPanel), j a multiple of kPanel, begin at data + j * column, and each row is `step` further.
template <class T>
struct RightOperand {
  const T* data;
  int64_t column, step;
};
template <class T>
inline RightOperand<T> packed_panels(const T* packed, int64_t depth) {
  return {packed, depth, kPanel<T>};
}
// A row-major B, its rows `stride` elements apart, where it lies; its columns must be whole registers.
template <class T>
inline RightOperand<T> row_major(const T* b, int64_t stride) {
  return {b, 1, stride};
}

// rows x kPanel of C, in registers: acc = or += sum_k a(i, k) * panel[k]. With one vector only the panel's first half.
template <class T, int rows, int vectors = kTileVectors>
struct Accumulator {
  Vec<T> sum[rows][vectors];

  inline void zero() {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) sum[i][v] = Vec<T>{};
  }
  // C += acc. Added at the end, an element of C takes one rounding, where a sum started from it would take one a term.
  inline void add_to(T* c, int64_t stride) const {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) {
        T* at = c + i * stride + v * kLanes<T>;
        store(at, static_cast<Vec<T>>(load<Vec<T>>(at) + sum[i][v]));
      }
  }
  inline void store_to(T* c, int64_t stride) const {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) store(c + i * stride + v * kLanes<T>, sum[i][v]);
  }
  inline void multiply(const Operand<T>& a, const T* panel, int64_t depth, int64_t step = kPanel<T>) {
    const T* p = a.data;
    for (int64_t k = 0; k < depth; ++k, p += a.step, panel += step) {
      Vec<T> b[vectors];
      for (int v = 0; v < vectors; ++v) b[v] = load<Vec<T>>(panel + v * kLanes<T>);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const T s = p[i * a.row];
        for (int v = 0; v < vectors; ++v) sum[i][v] += s * b[v];
      }
    }
  }
};

// One tile of `rows` rows and `columns` <= vectors * kLanes columns of C (+)= A panel.
template <class T, int rows, int vectors = kTileVectors>
inline void tile(const Operand<T>& a, const T* panel, int64_t step, int64_t depth, T* c, int64_t stride, int64_t columns, bool add) {
  if constexpr (vectors > 1)  // the padding of a last panel that is half empty is not worth multiplying
    if (columns <= kLanes<T>) return tile<T, rows, 1>(a, panel, step, depth, c, stride, columns, add);
  constexpr int64_t width = vectors * kLanes<T>;
  Accumulator<T, rows, vectors> acc;
  for (int i = 0; i < rows; ++i)  // C's lines come in while the product runs
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + i * stride + v * kLanes<T>, 1);
  acc.zero();
  acc.multiply(a, panel, depth, step);
  if (columns == width) {
    if (add)
      acc.add_to(c, stride);
    else
      acc.store_to(c, stride);
    return;
  }
  alignas(64) T edge[rows * width];  // the last panel's padding must not reach C
  acc.store_to(edge, width);
  for (int i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) c[i * stride + j] = edge[i * width + j] + (add ? c[i * stride + j] : T{0});
}

// The same for any number of rows up to kTileRows, known only at run time.
template <class T, int rows = kTileRows>
inline void tile_of(int64_t n, const Operand<T>& a, const T* panel, int64_t step, int64_t depth, T* c, int64_t stride, int64_t columns,
                    bool add) {
  if (n == rows) return tile<T, rows>(a, panel, step, depth, c, stride, columns, add);
  if constexpr (rows > 1) tile_of<T, rows - 1>(n, a, panel, step, depth, c, stride, columns, add);
}

// C [rows, columns] (+)= A [rows, depth] B [depth, columns]; C's rows are `stride` elements apart.
// Rows go in blocks that stay in L2 while the panels pass, a panel in L1 while a block's tiles pass.
template <class T>
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const Operand<T>& a, const RightOperand<T>& b, T* c, int64_t stride,
                     bool add = false) {
  if (columns == 0) return;  // no panels to share the next block's lines
  constexpr int64_t block = 8 * kTileRows, line = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t panels = (columns + kPanel<T> - 1) / kPanel<T>;
  for (int64_t i0 = 0; i0 < rows; i0 += block) {
    // The next block of A comes into L2 while this one is multiplied: its rows are too short for the processor to foresee.
    const int64_t ahead = a.step == 1 ? std::clamp<int64_t>(rows - i0 - block, 0, block) : 0;
    const int64_t share = (ahead + panels - 1) / panels;
    // Tiles of about the same height: one of a row or two would wait for its own sums.
    const int64_t count = std::min(block, rows - i0), tiles = (count + kTileRows - 1) / kTileRows, height = count / tiles;
    const int64_t taller = count % tiles;
    for (int64_t p = 0, j = 0; p < panels; ++p, j += kPanel<T>) {
      for (int64_t i = i0 + block + p * share; i < i0 + block + std::min(ahead, (p + 1) * share); ++i)
        for (int64_t k = 0; k < depth; k += line) __builtin_prefetch(a.data + i * a.row + k, 0, 2);
      for (int64_t i = i0, t = 0, n; t < tiles; i += n, ++t) {
        n = height + (t < taller);
        tile_of<T>(n, {a.data + i * a.row, a.row, a.step}, b.data + j * b.column, b.step, depth, c + i * stride + j, stride,
                   std::min(kPanel<T>, columns - j), add);
      }
    }
  }
}

// The same with B packed.
template <class T>
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const Operand<T>& a, const T* packed, T* c, int64_t stride,
                     bool add = false) {
  multiply<T>(rows, columns, depth, a, packed_panels(packed, depth), c, stride, add);
}

}  // namespace
}  // namespace ak::AK_ISA
