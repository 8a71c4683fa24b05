// TabNet's GLU layer: a linear layer with everything behind it, out = (x + v[:, :h] * sigmoid(v[:, h:])) * scale with
// v = norm((x * mask) @ fc.T). The residual x is added only where asked for, and then there is no mask.
#pragma once

#include <cstdint>

#include "ghost_batch_norm.h"

namespace ak {

template <class T>
struct GluLayer {
  const T *x, *fc, *mask;  // [rows, depth], [2h, depth], [rows, depth] or null
  int64_t depth, h;
  Chunks chunks;
  bool training, residual;
  T scale;
};

// What the backward pass is asked for; null: not wanted. Statistics' gradients always come.
template <class T>
struct GluLayerGradients {
  T *x, *fc, *mask, *weight, *bias;
};

}  // namespace ak

AK_FOR_EACH_ISA(
    // u [rows, 2h], the linear layer's output, is kept for the backward pass where it is not null.
    template <class T> void glu_layer(const GluLayer<T>& layer, const NormInputs<T>& in, const NormState<T>& state, T* u, T* out);
    template <class T> void glu_layer_backward(const GluLayer<T>& layer, const T* grad, const T* u, const T* weight,
                                               const T* bias, const T* mean, const T* rstd,
                                               const GluLayerGradients<T>& gradients);)
