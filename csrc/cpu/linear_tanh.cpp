// A block of tokens goes through the product and the tanh, or back, while it is in the cache.
#include "linear_tanh.h"

#include <algorithm>

#include "../common/gemm.h"
#include "../common/parallel.h"
#include "patch.h"

namespace ak::AK_ISA {
namespace {

// Rows [first, first + rows) of x as tokens [rows][T][stride].
template <class T>
void gather_tokens(const LinearTanh<T>& a, int64_t first, int64_t rows, T* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) gather<T>(a.x, {first + r, 1, 0, a.steps}, a.inputs, to + r * a.steps * stride, stride);
}

}  // namespace

template <class T>
void linear_tanh(const LinearTanh<T>& a, T* y) {
  Scratch<T> packed(packed_size<T>(a.inputs, a.outputs));
  pack_transposed<T>(a.weight, a.inputs, a.inputs, a.outputs, packed);
  const int64_t rows = block_rows(a.steps);
  const int64_t most = rows * a.steps / 2;  // days of a block up to which it is worth it to do them apart
  parallel_for((a.batch + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> tokens(rows * a.steps * a.inputs), apart(most * a.outputs);
    Scratch<int32_t> place(rows * a.steps);
    const auto forward = [&](int64_t count, T* to) {
      multiply<T>(count, a.outputs, a.inputs, {tokens, a.inputs, 1}, packed, to, a.outputs);
      for (int64_t i = 0; i < count; ++i)
        each_column_once<T>(a.outputs, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          const P z = load<P>(to + i * a.outputs + j);
          store(to + i * a.outputs + j, tanh<P, T>(a.bias != nullptr ? z + load<P>(a.bias + j) : z));
        });
    };
    for (int64_t first = begin * rows; first < std::min(a.batch, end * rows); first += rows) {
      const int64_t n = std::min(rows, a.batch - first);
      T* const to = y + first * a.steps * a.outputs;
      const int64_t days = distinct_days<T>(a.x, first, n, a.steps, a.inputs, most, tokens, place);
      if (days == 0) {
        gather_tokens<T>(a, first, n, tokens, a.inputs);
        forward(n * a.steps, to);
        continue;
      }
      forward(days, apart);
      for (int64_t r = 0; r < n; ++r)
        for (int64_t t = 0; t < a.steps; ++t)
          std::copy_n(apart + place[t * n + r] * a.outputs, a.outputs, to + (r * a.steps + t) * a.outputs);
    }
  });
}

template <class T>
void linear_tanh_backward(const LinearTanh<T>& a, const T* y, const T* grad, T* dx, T* dweight, T* dbias) {
  const int64_t rows = block_rows(a.steps), wide = round_up(a.outputs, kPanel<T>), stride = a.inputs + 1;
  Scratch<T> packed(dx != nullptr ? packed_size<T>(a.outputs, a.inputs) : 0);  // of the product with W
  if (dx != nullptr) pack<T>(a.weight, a.inputs, a.outputs, a.inputs, packed);
  // Each group of blocks sums the transposed weight's gradient and under it the bias's, whose input is one; the groups are added in
  // order: the same for any number of threads.
  const int64_t blocks = (a.batch + rows - 1) / rows, groups = std::min<int64_t>(blocks, 16), set = stride * wide;
  Scratch<T> sets(groups * set);
  parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> tokens(rows * a.steps * stride), dz(rows * a.steps * wide);
    for (int64_t group = begin; group < end; ++group) {
      T* const sums = sets + group * set;
      std::fill(sums, sums + set, T{0});
      for (int64_t block = blocks * group / groups; block < blocks * (group + 1) / groups; ++block) {
        const int64_t first = block * rows, n = std::min(rows, a.batch - first), count = n * a.steps, at = first * a.steps;
        gather_tokens<T>(a, first, n, tokens, stride);
        for (int64_t i = 0; i < count; ++i) {
          const T *of_y = y + (at + i) * a.outputs, *of_grad = grad + (at + i) * a.outputs;
          tokens[i * stride + a.inputs] = 1;
          each_column_once<T>(a.outputs, [&](auto pack, int64_t j) {
            using P = decltype(pack);
            const P value = load<P>(of_y + j);
            store(dz + i * wide + j, static_cast<P>(load<P>(of_grad + j) * (1 - value * value)));
          });
          std::fill(dz + i * wide + a.outputs, dz + (i + 1) * wide, T{0});
        }
        multiply<T>(stride, wide, count, {tokens, 1, stride}, row_major<T>(dz, wide), sums, wide, true);
        if (dx != nullptr) multiply<T>(count, a.inputs, a.outputs, {dz, wide, 1}, packed, dx + at * a.inputs, a.inputs);
      }
    }
  });
  for (int64_t k = 0; k < stride; ++k)
    for (int64_t j = 0; j < a.outputs; ++j) {
      T sum = 0;
      for (int64_t group = 0; group < groups; ++group) sum += sets[group * set + k * wide + j];
      (k < a.inputs ? dweight[j * a.inputs + k] : dbias[j]) = sum;
    }
}

#define AK_INSTANTIATE(T)                                    \
  template void linear_tanh<T>(const LinearTanh<T>&, T*); \
  template void linear_tanh_backward<T>(const LinearTanh<T>&, const T*, const T*, T*, T*, T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
