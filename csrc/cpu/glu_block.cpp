#include "glu_block.h"

#include "ghost_statistics.h"

namespace ak::AK_ISA {
namespace {

// v = u * a + b column by column, where a and b carry the whole norm of a chunk: [2h] each. The mean is taken off first, so
// that a large mean costs no digits.
template <class T>
struct Affine {
  const T *mean, *a, *b;
  template <class P>
  P operator()(const T* u, int64_t j) const {
    return (load<P>(u + j) - load<P>(mean + j)) * load<P>(a + j) + load<P>(b + j);
  }
};

// mean, a = rstd * weight and b = bias of every chunk, [chunks, 3, n]; identity without a norm.
template <class T>
T* affine_of(int64_t n, int64_t chunks, const T* mean, const T* rstd, const T* weight, const T* bias) {
  T* table = new T[static_cast<size_t>(chunks * 3 * n)];
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t j = 0; j < n; ++j) {
      T* t = table + c * 3 * n + j;
      t[0] = mean != nullptr ? mean[c * n + j] : 0;
      t[n] = (rstd != nullptr ? rstd[c * n + j] : 1) * (weight != nullptr ? weight[j] : 1);
      t[2 * n] = bias != nullptr ? bias[j] : 0;
    }
  return table;
}

template <class T>
Affine<T> affine_at(const T* table, int64_t n, int64_t chunk) {
  const T* t = table + chunk * 3 * n;
  return {t, t + n, t + 2 * n};
}

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
  if (norm && training)
    ghost_statistics(u, n, chunks, {in.momentum, in.eps}, in.running_mean, in.running_var, in.linear_bias, state.mean,
                     state.rstd, state.new_running_mean, state.new_running_var);
  else if (norm)
    running_statistics(in.running_mean, in.running_var, in.linear_bias, n, in.eps, state.mean, state.rstd);
  T* table = norm ? affine_of<T>(n, chunks.count, state.mean, state.rstd, in.weight, in.bias)
                  : affine_of<T>(n, 1, nullptr, nullptr, nullptr, in.linear_bias);
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
}

template <class T>
void glu_block_backward(const T* grad, const T* u, const T* weight, const T* bias, const T* mean, const T* rstd, int64_t h,
                        const Chunks& chunks, bool training, T scale, T* du, T* dweight, T* dbias) {
  const int64_t n = 2 * h;
  const bool norm = mean != nullptr;
  T* table = affine_of<T>(n, norm ? chunks.count : 1, mean, rstd, weight, bias);
  T* sums = nullptr;
  if (norm) {
    sums = new T[static_cast<size_t>(chunks.count * 2 * n)];
    gradient_sums<T>(n, chunks, sums, [&](int64_t i, int64_t chunk, T* s1, T* s2) {
      const Affine<T> v = affine_at(table, n, chunk);
      const T *row = u + i * n, *m = mean + chunk * n, *r = rstd + chunk * n;
      // Each column once: no overlapping packs where sums are taken.
      const auto add = [&](auto pack, int64_t j) {
        using P = decltype(pack);
        P dvalue, dgate;
        gate_gradients<P, T>(load<P>(grad + i * h + j) * scale, v.template operator()<P>(row, j),
                             v.template operator()<P>(row, h + j), dvalue, dgate);
        const auto add_one = [&](int64_t k, P d) {
          const P xhat = (load<P>(row + k) - load<P>(m + k)) * load<P>(r + k);
          store(s1 + k, static_cast<P>(load<P>(s1 + k) + d));
          store(s2 + k, static_cast<P>(load<P>(s2 + k) + d * xhat));
        };
        add_one(j, dvalue);
        add_one(h + j, dgate);
      };
      int64_t j = 0;
      for (; j + kLanes<T> <= h; j += kLanes<T>) add(Vec<T>{}, j);
      for (; j < h; ++j) add(T{}, j);
    });
    parameter_gradients(n, chunks.count, sums, dweight, dbias);
  }
  parallel_for(chunks.blocks(), 1 + 4096 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = norm ? chunks.chunk_of_block(block) : 0;
      const Affine<T> v = affine_at(table, n, c);
      const T inverse =
          norm && training ? static_cast<T>(1.0 / static_cast<double>(chunks.end(c) - chunks.begin(c))) : 0;
      for (int64_t i = chunks.block_begin(block); i < chunks.block_end(block); ++i)
        for_each_pack<T>(h, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          const T* row = u + i * n;
          P dvalue, dgate;
          gate_gradients<P, T>(load<P>(grad + i * h + j) * scale, v.template operator()<P>(row, j),
                               v.template operator()<P>(row, h + j), dvalue, dgate);
          const auto through_norm = [&](int64_t k, P d) {
            if (norm && training) {
              const P xhat = (load<P>(row + k) - load<P>(mean + c * n + k)) * load<P>(rstd + c * n + k);
              d -= (load<P>(sums + c * 2 * n + k) + xhat * load<P>(sums + (c * 2 + 1) * n + k)) * inverse;
            }
            store(du + i * n + k, static_cast<P>(d * load<P>(v.a + k)));
          };
          through_norm(j, dvalue);
          through_norm(h + j, dgate);
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
