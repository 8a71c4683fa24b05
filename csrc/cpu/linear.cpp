#include "linear.h"

#include "../common/gemm.h"
#include "../common/parallel.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kBlock = 8 * kTileRows;  // rows of a masked block, small enough for L2 beside the packed weight

// Panels [depth, kPanel] packed one call each, by all threads where there is enough of it.
template <class T, class F>
inline void for_panels(int64_t depth, int64_t columns, const F& pack_one) {
  parallel_for((columns + kPanel<T> - 1) / kPanel<T>, 1 + 65536 / (depth * kPanel<T> + 1), [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) pack_one(p * kPanel<T>, std::min(kPanel<T>, columns - p * kPanel<T>));
  });
}

// The sum over rows is cut into parts by the number of rows alone, and the parts are added in order.
constexpr int64_t kPartRows = 512, kMaxParts = 16;

template <class T>
void weight_gradient(const T* grad, const T* x, const T* mask, T* dweight, int64_t rows, int64_t depth, int64_t columns,
                     bool add) {
  constexpr int64_t chunk = 128;  // rows packed at a time: both operands stay in L2
  const int64_t parts = std::clamp<int64_t>((rows + kPartRows - 1) / kPartRows, 1, kMaxParts);
  const int64_t part_rows = round_up((rows + parts - 1) / parts, 8), size = columns * depth;
  Scratch<T> sums(parts > 1 ? (parts - 1) * size : 0);
  parallel_for(parts, 1, [&](int64_t first, int64_t last) {
    Scratch<T> left(chunk * round_up(columns, kTileRows)), right(packed_size<T>(chunk, depth)), product(depth);
    for (int64_t part = first; part < last; ++part) {
      T* c = part == 0 ? dweight : sums + (part - 1) * size;
      const int64_t end = std::min(rows, (part + 1) * part_rows);
      const bool fresh = part > 0 || !add;
      if (part * part_rows >= end && fresh) std::fill(c, c + size, T{0});
      for (int64_t i0 = part * part_rows; i0 < end; i0 += chunk) {
        const int64_t n = std::min(chunk, end - i0);
        for (int64_t i = 0; i < n; ++i) {
          pack_row<kTileRows>(grad + (i0 + i) * columns, columns, static_cast<T*>(left), n, i);
          const T* row = x + (i0 + i) * depth;
          if (mask != nullptr) {
            multiply_elements<T>(row, mask + (i0 + i) * depth, product, depth);
            row = product;
          }
          pack_row<kPanel<T>>(row, depth, static_cast<T*>(right), n, i);
        }
        for (int64_t k = 0; k < depth; k += kPanel<T>)
          for (int64_t j = 0; j < columns; j += kTileRows)
            tile_of<T>(std::min<int64_t>(kTileRows, columns - j), {left + j * n, 1, kTileRows}, right + k * n, kPanel<T>, n,
                       c + j * depth + k, depth, std::min(kPanel<T>, depth - k), i0 > part * part_rows || !fresh);
      }
    }
  });
  if (parts > 1)
    parallel_for(size, 8192, [&](int64_t first, int64_t last) {
      for (int64_t part = 0; part + 1 < parts; ++part)
        for (int64_t i = first; i < last; ++i) dweight[i] += sums[part * size + i];
    });
}

}  // namespace

template <class T>
void linear(const T* x, const T* weight, const T* mask, T* u, int64_t rows, int64_t depth, int64_t columns) {
  Scratch<T> packed(packed_size<T>(depth, columns));
  for_panels<T>(depth, columns, [&](int64_t j, int64_t n) {
    pack_transposed<T>(weight + j * depth, depth, depth, n, packed + j * depth);
  });
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kBlock, end = std::min(rows, last * kBlock);
    if (mask == nullptr) {
      multiply<T>(end - begin, columns, depth, {x + begin * depth, depth, 1}, packed, u + begin * columns, columns);
      return;
    }
    Scratch<T> product(kBlock * depth);
    for (int64_t i0 = begin; i0 < end; i0 += kBlock) {
      const int64_t n = std::min(kBlock, end - i0);
      multiply_elements<T>(x + i0 * depth, mask + i0 * depth, product, n * depth);
      multiply<T>(n, columns, depth, {product, depth, 1}, packed, u + i0 * columns, columns);
    }
  });
}

template <class T>
void linear_backward(const T* grad, const T* x, const T* weight, const T* mask, T* dx, T* dweight, T* dmask, int64_t rows,
                     int64_t depth, int64_t columns, bool add_dx, bool add_dweight) {
  if (dweight != nullptr) weight_gradient(grad, x, mask, dweight, rows, depth, columns, add_dweight);
  if (dx == nullptr && dmask == nullptr) return;
  Scratch<T> packed(packed_size<T>(columns, depth));
  for_panels<T>(columns, depth, [&](int64_t j, int64_t n) { pack<T>(weight + j, depth, columns, n, packed + j * columns); });
  parallel_for((rows + kBlock - 1) / kBlock, 1, [&](int64_t first, int64_t last) {
    Scratch<T> product(mask != nullptr ? kBlock * depth : 0);
    for (int64_t i0 = first * kBlock; i0 < std::min(rows, last * kBlock); i0 += kBlock) {
      const int64_t n = std::min(kBlock, rows - i0), at = i0 * depth;
      T* masked = mask != nullptr ? static_cast<T*>(product) : dx + at;  // the gradient of x * mask
      multiply<T>(n, depth, columns, {grad + i0 * columns, columns, 1}, packed, masked, depth, add_dx && mask == nullptr);
      if (mask == nullptr) continue;
      if (dx != nullptr) multiply_elements<T>(masked, mask + at, dx + at, n * depth);
      if (dmask != nullptr) multiply_elements<T>(masked, x + at, dmask + at, n * depth);
    }
  });
}

#define AK_INSTANTIATE(T)                                                                                              \
  template void linear<T>(const T*, const T*, const T*, T*, int64_t, int64_t, int64_t);                                 \
  template void linear_backward<T>(const T*, const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t, int64_t, bool, \
                                   bool);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
