#include "glu_block.h"

#include "glu_rows.h"

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
      const int64_t i = chunks.block_begin(block);
      gate_rows(u + i * n, residual != nullptr ? residual + i * h : nullptr, out + i * h, chunks.block_end(block) - i, h, v, scale);
    }
  });
  delete[] table;
  delete[] mean_rest;
}

template <class T>
void glu_block_backward(const T* grad, const T* u, const T* weight, const T* bias, const T* mean, const T* rstd, int64_t h,
                        const Chunks& chunks, bool training, T scale, T* du, T* dresidual, T* dweight, T* dbias) {
  const int64_t n = 2 * h;
  const bool norm = mean != nullptr;
  T* table = affine_of<T>(n, norm ? chunks.count : 1, mean, nullptr, rstd, weight, bias);
  // First pass: the gradient of v, written to du; with a norm also its column sums. Second pass, of a norm alone: du in place.
  // So the sigmoid is taken once. `use(r, centred value, centred gate, dvalue, dgate)` for each of the rows together.
  const auto gradient_rows = [=](auto rows, int64_t i, const Affine<T>& v, auto pack, int64_t j, const auto& use) {
    using P = decltype(pack);
    const P mv = load<P>(v.mean + j), av = load<P>(v.a + j), bv = load<P>(v.b + j);
    const P mg = load<P>(v.mean + h + j), ag = load<P>(v.a + h + j), bg = load<P>(v.b + h + j);
    for (int64_t r = i; r < i + rows; ++r) {
      const P cv = load<P>(u + r * n + j) - mv, cg = load<P>(u + r * n + h + j) - mg;
      const P dout = load<P>(grad + r * h + j) * scale;
      P dvalue, dgate;
      gate_gradients<P, T>(dout, cv * av + bv, cg * ag + bg, dvalue, dgate);
      if (dresidual != nullptr) store(dresidual + r * h + j, dout);
      store(du + r * n + j, dvalue);
      store(du + r * n + h + j, dgate);
      use(cv, cg, dvalue, dgate);
    }
  };
  if (!norm) {
    const Affine<T> v = affine_at(table, n, 0);
    parallel_for(chunks.rows, 1 + 4096 / n, [&](int64_t first, int64_t last) {
      rows_together(first, last, [&](auto rows, int64_t i) {
        for_each_pack<T>(h, [&](auto pack, int64_t j) { gradient_rows(rows, i, v, pack, j, [](auto...) {}); });
      });
    });
    delete[] table;
    return;
  }
  T* sums = new T[static_cast<size_t>(chunks.count * 2 * n)];
  gradient_sums<T>(n, chunks, rstd, sums, [&](int64_t begin, int64_t end, int64_t chunk, T* s1, T* s2) {
    const Affine<T> v = affine_at(table, n, chunk);
    rows_together(begin, end, [&](auto rows, int64_t i) {
      each_column_once<T>(h, [&](auto pack, int64_t j) {
        using P = decltype(pack);
        P value1 = load<P>(s1 + j), value2 = load<P>(s2 + j), gate1 = load<P>(s1 + h + j), gate2 = load<P>(s2 + h + j);
        gradient_rows(rows, i, v, pack, j, [&](P cv, P cg, P dvalue, P dgate) {
          value1 += dvalue;
          value2 += dvalue * cv;
          gate1 += dgate;
          gate2 += dgate * cg;
        });
        store(s1 + j, value1);
        store(s2 + j, value2);
        store(s1 + h + j, gate1);
        store(s2 + h + j, gate2);
      });
    });
  });
  parameter_gradients(n, chunks.count, sums, dweight, dbias);
  input_gradient(n, chunks, du, u, mean, rstd, weight, sums, training, du);
  delete[] sums;
  delete[] table;
}

#define AK_INSTANTIATE(T)                                                                                            \
  template void glu_block<T>(const T*, const T*, T*, int64_t, const Chunks&, bool, bool, const NormInputs<T>&,        \
                             const NormState<T>&, T);                                                                \
  template void glu_block_backward<T>(const T*, const T*, const T*, const T*, const T*, const T*, int64_t, const Chunks&, \
                                      bool, T, T*, T*, T*, T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
