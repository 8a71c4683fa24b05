#include "glu_block.h"

#include "ghost_statistics.h"

namespace ak::AK_ISA {
namespace {

// The gradients of value * sigmoid(gate) with respect to both.
template <class P, class T>
inline void gate_gradients(P dout, P value, P gate, P& dvalue, P& dgate) {
  const P s = sigmoid<P, T>(gate);
  dvalue = dout * s;
  dgate = dvalue * value * (static_cast<T>(1) - s);
}

}  // namespace

template <class T>
void glu_block(const T* u, const T* residual, T* out, int64_t h, const Chunks& chunks, bool training, bool norm,
               const NormInputs<T>& in, const NormState<T>& state, T scale) {
  const int64_t n = 2 * h;
  T* mean_rest = new T[static_cast<size_t>(chunks.count * n)];
  if (norm && training)
    ghost_statistics(u, n, chunks, {in.momentum, in.eps}, in.running_mean, in.running_var, in.linear_bias, state.mean,
                     mean_rest, state.rstd, state.new_running_mean, state.new_running_var);
  else if (norm)
    running_statistics(in.running_mean, in.running_var, in.linear_bias, n, in.eps, state.mean, mean_rest, state.rstd);
  T* table = norm ? affine_of<T>(n, chunks.count, state.mean, mean_rest, state.rstd, in.weight, in.bias)
                  : affine_of<T>(n, 1, nullptr, nullptr, nullptr, nullptr, in.linear_bias);
  parallel_for(chunks.blocks(), 1 + 4096 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const Affine<T> v = affine_at(table, n, norm ? chunks.chunk_of_block(block) : 0);
      for (int64_t i = chunks.block_begin(block); i < chunks.block_end(block); ++i)
        for_each_pack<T>(h, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          const T* row = u + i * n;
          P y = v.template operator()<P>(row, j) * sigmoid<P, T>(v.template operator()<P>(row, h + j));
          if (residual != nullptr) y += load<P>(residual + i * h + j);
          store(out + i * h + j, static_cast<P>(y * scale));
        });
    }
  });
  delete[] table;
  delete[] mean_rest;
}

template <class T>
void glu_block_backward(const T* grad, const T* u, const T* weight, const T* bias, const T* mean, const T* rstd, int64_t h,
                        const Chunks& chunks, bool training, T scale, T* du, T* dweight, T* dbias) {
  const int64_t n = 2 * h;
  const bool norm = mean != nullptr;
  T* table = affine_of<T>(n, norm ? chunks.count : 1, mean, nullptr, rstd, weight, bias);
  // First pass: the gradient of v, written to du; with a norm also its column sums. Second pass, of a norm alone: du in place.
  // So the sigmoid is taken once.
  const auto gate_row = [&](int64_t i, const Affine<T>& v, const auto& use) {
    const T* row = u + i * n;
    return [&, i, v, row](auto pack, int64_t j) {
      using P = decltype(pack);
      P dvalue, dgate;
      gate_gradients<P, T>(load<P>(grad + i * h + j) * scale, v.template operator()<P>(row, j),
                           v.template operator()<P>(row, h + j), dvalue, dgate);
      store(du + i * n + j, dvalue);
      store(du + i * n + h + j, dgate);
      use(j, dvalue);
      use(h + j, dgate);
    };
  };
  if (!norm) {
    const Affine<T> v = affine_at(table, n, 0);
    parallel_for(chunks.rows, 1 + 4096 / n, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) for_each_pack<T>(h, gate_row(i, v, [](int64_t, auto) {}));
    });
    delete[] table;
    return;
  }
  T* sums = new T[static_cast<size_t>(chunks.count * 2 * n)];
  gradient_sums<T>(n, chunks, sums, [&](int64_t i, int64_t chunk, T* s1, T* s2) {
    const T *row = u + i * n, *m = mean + chunk * n, *r = rstd + chunk * n;
    each_column_once<T>(h, gate_row(i, affine_at(table, n, chunk), [&](int64_t k, auto d) {
                          using P = decltype(d);
                          const P xhat = (load<P>(row + k) - load<P>(m + k)) * load<P>(r + k);
                          store(s1 + k, static_cast<P>(load<P>(s1 + k) + d));
                          store(s2 + k, static_cast<P>(load<P>(s2 + k) + d * xhat));
                        }));
  });
  parameter_gradients(n, chunks.count, sums, dweight, dbias);
  parallel_for(chunks.blocks(), 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = chunks.chunk_of_block(block);
      const Affine<T> v = affine_at(table, n, c);
      const T *m = mean + c * n, *r = rstd + c * n, *s1 = sums + c * 2 * n, *s2 = s1 + n;
      const T inverse = static_cast<T>(1.0 / static_cast<double>(chunks.end(c) - chunks.begin(c)));
      for (int64_t i = chunks.block_begin(block); i < chunks.block_end(block); ++i)
        each_column_once<T>(n, [&](auto pack, int64_t k) {  // in place: each column once
          using P = decltype(pack);
          P d = load<P>(du + i * n + k);
          if (training) {
            const P xhat = (load<P>(u + i * n + k) - load<P>(m + k)) * load<P>(r + k);
            d -= (load<P>(s1 + k) + xhat * load<P>(s2 + k)) * inverse;
          }
          store(du + i * n + k, static_cast<P>(d * load<P>(v.a + k)));
        });
    }
  });
  delete[] sums;
  delete[] table;
}

#define AK_INSTANTIATE(T)                                                                                            \
  template void glu_block<T>(const T*, const T*, T*, int64_t, const Chunks&, bool, bool, const NormInputs<T>&,        \
                             const NormState<T>&, T);                                                                \
  template void glu_block_backward<T>(const T*, const T*, const T*, const T*, const T*, const T*, int64_t, const Chunks&, \
                                      bool, T, T*, T*, T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
