#include "glu_layer.h"

#include "../common/gemm.h"
#include "glu_block.h"
#include "glu_rows.h"
#include "linear.h"

namespace ak::AK_ISA {
namespace {

// Chunks go through in groups of about this many rows: what passes from the product to the norm and back is still in cache, and
// memory for it is needed once, not for the whole batch.
constexpr int64_t kGroupRows = 2048;

template <class F>
inline void for_groups(const Chunks& chunks, const F& f) {
  const int64_t some = std::max<int64_t>(1, kGroupRows / std::max<int64_t>(chunks.size, 1));
  for (int64_t c = 0; c < chunks.count; c += some) f(c, chunks.part(c, std::min(some, chunks.count - c)));
}

template <class T>
int64_t largest_group(const Chunks& chunks) {
  int64_t rows = 0;
  for_groups(chunks, [&](int64_t, const Chunks& group) { rows = std::max(rows, group.rows); });
  return rows;
}

// In evaluation every row stands alone: product and gate of a block of rows, one after the other in one thread's cache.
template <class T>
void evaluate(const GluLayer<T>& layer, const NormInputs<T>& in, const NormState<T>& state, T* u, T* out) {
  const int64_t n = 2 * layer.h, depth = layer.depth, h = layer.h, rows = layer.chunks.rows;
  Scratch<T> mean_rest(n), packed(packed_size<T>(depth, n));
  running_statistics(in.running_mean, in.running_var, in.linear_bias, n, in.eps, state.mean, static_cast<T*>(mean_rest), state.rstd);
  T* table = affine_of<T>(n, 1, state.mean, mean_rest, state.rstd, in.weight, in.bias);
  const Affine<T> v = affine_at(table, n, 0);
  pack_transposed<T>(layer.fc, depth, depth, n, packed);
  constexpr int64_t block = 8 * kTileRows;
  parallel_for((rows + block - 1) / block, 1, [&](int64_t first, int64_t last) {
    Scratch<T> masked(layer.mask != nullptr ? block * depth : 0), product(u == nullptr ? block * n : 0);
    for (int64_t i = first * block; i < std::min(rows, last * block); i += block) {
      const int64_t some = std::min(block, rows - i);
      const T* x = layer.x + i * depth;
      T* to = u != nullptr ? u + i * n : static_cast<T*>(product);
      if (layer.mask != nullptr) {
        multiply_elements<T>(x, layer.mask + i * depth, masked, some * depth);
        x = masked;
      }
      multiply<T>(some, n, depth, {x, depth, 1}, packed, to, n);
      gate_rows(to, layer.residual ? x : nullptr, out + i * h, some, h, v, layer.scale);
    }
  });
  delete[] table;
}

}  // namespace

template <class T>
void glu_layer(const GluLayer<T>& layer, const NormInputs<T>& in, const NormState<T>& state, T* u, T* out) {
  if (!layer.training) {
    evaluate(layer, in, state, u, out);
    return;
  }
  const int64_t n = 2 * layer.h, depth = layer.depth;
  Scratch<T> product(u == nullptr ? largest_group<T>(layer.chunks) * n : 0);
  for_groups(layer.chunks, [&](int64_t c, const Chunks& group) {
    const int64_t i = layer.chunks.begin(c);
    const T* x = layer.x + i * depth;
    T* to = u != nullptr ? u + i * n : static_cast<T*>(product);
    linear<T>(x, layer.fc, layer.mask != nullptr ? layer.mask + i * depth : nullptr, to, group.rows, depth, n);
    NormInputs<T> here = in;  // the running statistics go from group to group
    if (c > 0 && in.running_mean != nullptr) here.running_mean = state.new_running_mean, here.running_var = state.new_running_var;
    glu_block<T>(to, layer.residual ? x : nullptr, out + i * layer.h, layer.h, group, true, true, here,
                 {state.mean + c * n, state.rstd + c * n, state.new_running_mean, state.new_running_var}, layer.scale);
  });
}

template <class T>
void glu_layer_backward(const GluLayer<T>& layer, const T* grad, const T* u, const T* weight, const T* bias, const T* mean,
                        const T* rstd, const GluLayerGradients<T>& gradients) {
  const int64_t n = 2 * layer.h, depth = layer.depth, h = layer.h;
  Scratch<T> du(largest_group<T>(layer.chunks) * n), of_group(2 * n);
  for_groups(layer.chunks, [&](int64_t c, const Chunks& group) {
    const int64_t i = layer.chunks.begin(c);
    T *dweight = c == 0 ? gradients.weight : of_group, *dbias = c == 0 ? gradients.bias : of_group + n;
    T* dx = gradients.x != nullptr ? gradients.x + i * depth : nullptr;
    T* dresidual = layer.residual ? dx : nullptr;  // x is the residual, and h = depth
    glu_block_backward<T>(grad + i * h, u + i * n, weight, bias, mean + c * n, rstd + c * n, h, group, layer.training, layer.scale,
                          du, dresidual, dweight, dbias);
    if (c > 0)
      for (int64_t j = 0; j < n; ++j) {
        gradients.weight[j] += dweight[j];
        gradients.bias[j] += dbias[j];
      }
    linear_backward<T>(du, layer.x + i * depth, layer.fc, layer.mask != nullptr ? layer.mask + i * depth : nullptr, dx,
                       gradients.fc, gradients.mask != nullptr ? gradients.mask + i * depth : nullptr, group.rows, depth, n,
                       dresidual != nullptr, c > 0);
  });
}

#define AK_INSTANTIATE(T)                                                                                                \
  template void glu_layer<T>(const GluLayer<T>&, const NormInputs<T>&, const NormState<T>&, T*, T*);                      \
  template void glu_layer_backward<T>(const GluLayer<T>&, const T*, const T*, const T*, const T*, const T*, const T*,     \
                                      const GluLayerGradients<T>&);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
