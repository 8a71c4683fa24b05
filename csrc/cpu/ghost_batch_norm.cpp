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
  gradient_sums<T>(n, chunks, sums, [&](int64_t i, int64_t chunk, T* s1, T* s2) {
    const T *g = grad + i * n, *row = x + i * n, *m = mean + chunk * n, *r = rstd + chunk * n;
    each_column_once<T>(n, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      const P dy = load<P>(g + j), xhat = (load<P>(row + j) - load<P>(m + j)) * load<P>(r + j);
      store(s1 + j, static_cast<P>(load<P>(s1 + j) + dy));
      store(s2 + j, static_cast<P>(load<P>(s2 + j) + dy * xhat));
    });
  });
  parallel_for(chunks.blocks(), 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = chunks.chunk_of_block(block);
      const T *m = mean + c * n, *r = rstd + c * n, *s1 = sums + c * 2 * n, *s2 = s1 + n;
      const T inverse = static_cast<T>(1.0 / static_cast<double>(chunks.end(c) - chunks.begin(c)));
      for (int64_t i = chunks.block_begin(block); i < chunks.block_end(block); ++i)
        for_each_pack<T>(n, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          P scale = load<P>(r + j);
          const P xhat = (load<P>(x + i * n + j) - load<P>(m + j)) * scale;
          if (weight != nullptr) scale *= load<P>(weight + j);
          P d = load<P>(grad + i * n + j);
          if (training) d -= (load<P>(s1 + j) + xhat * load<P>(s2 + j)) * inverse;
          store(dx + i * n + j, static_cast<P>(scale * d));
        });
    }
  });
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
