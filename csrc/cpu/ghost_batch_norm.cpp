#include "ghost_batch_norm.h"

#include "ghost_statistics.h"

namespace ak::AK_ISA {

template <class T>
void ghost_batch_norm(const T* x, T* y, int64_t n, const Chunks& chunks, bool training, const NormInputs<T>& in,
                      const NormState<T>& state) {
  T* mean_rest = new T[static_cast<size_t>(chunks.count * n)];
  if (training)
    ghost_statistics(x, n, chunks, {in.momentum, in.eps}, in.running_mean, in.running_var, in.linear_bias, state.mean,
                     mean_rest, state.rstd, state.new_running_mean, state.new_running_var);
  else
    running_statistics(in.running_mean, in.running_var, in.linear_bias, n, in.eps, state.mean, mean_rest, state.rstd);
  T* table = affine_of<T>(n, chunks.count, state.mean, mean_rest, state.rstd, in.weight, in.bias);
  parallel_for(chunks.blocks(), 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const Affine<T> v = affine_at(table, n, chunks.chunk_of_block(block));
      for (int64_t i = chunks.block_begin(block); i < chunks.block_end(block); ++i)
        for_each_pack<T>(n, [&](auto pack, int64_t j) {
          store(y + i * n + j, v.template operator()<decltype(pack)>(x + i * n, j));
        });
    }
  });
  delete[] table;
  delete[] mean_rest;
}

template <class T>
void ghost_batch_norm_backward(const T* grad, const T* x, const T* weight, const T* mean, const T* rstd, int64_t n,
                               const Chunks& chunks, bool training, T* dx, T* dweight, T* dbias) {
  T* sums = new T[static_cast<size_t>(chunks.count * 2 * n)];
  gradient_sums<T>(n, chunks, rstd, sums, [&](int64_t begin, int64_t end, int64_t chunk, T* s1, T* s2) {
    const T* m = mean + chunk * n;
    rows_together(begin, end, [&](auto rows, int64_t i) {
      each_column_once<T>(n, [&](auto pack, int64_t j) {
        using P = decltype(pack);
        const P mj = load<P>(m + j);
        P a = load<P>(s1 + j), b = load<P>(s2 + j);
        for (int64_t k = i * n + j, r = 0; r < rows; ++r, k += n) {
          const P dy = load<P>(grad + k);
          a += dy;
          b += dy * (load<P>(x + k) - mj);
        }
        store(s1 + j, a);
        store(s2 + j, b);
      });
    });
  });
  input_gradient(n, chunks, grad, x, mean, rstd, weight, sums, training, dx);
  parameter_gradients(n, chunks.count, sums, dweight, dbias);
  delete[] sums;
}

#define AK_INSTANTIATE(T)                                                                                                \
  template void ghost_batch_norm<T>(const T*, T*, int64_t, const Chunks&, bool, const NormInputs<T>&, const NormState<T>&); \
  template void ghost_batch_norm_backward<T>(const T*, const T*, const T*, const T*, const T*, int64_t, const Chunks&,   \
                                             bool, T*, T*, T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
