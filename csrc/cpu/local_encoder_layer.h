// LocalFormer's encoder layer and, without its convolution, the post-norm layer of torch.nn.TransformerEncoderLayer:
//   u = conv(x), s = x + u, a = norm(s + dropout(attention(s))), y = norm(a + dropout(ffn(a))).
#pragma once

#include <cstdint>

#include "../common/isa.h"

namespace ak {

// The layer's parameters, or their gradients, as torch lays them out; those of the convolution are null where there is none.
template <class T>
struct EncoderParameters {
  T *in_weight, *in_bias, *out_weight, *out_bias;  // [3d, d], [3d], [d, d], [d]
  T *weight1, *bias1, *weight2, *bias2;            // [f, d], [f], [d, f], [d]
  T *gamma1, *beta1, *gamma2, *beta2;              // [d] each
  T *conv_weight, *conv_bias;                      // [d, d, 3], [d]
};

template <class T>
struct EncoderLayer {
  int64_t batch, steps, width, heads, hidden;  // B, T, d, heads, f
  EncoderParameters<const T> weights;
  const T* mask;  // [T, T], added to the scores, or null
  uint64_t seed;
  double dropout;
  T eps;
};

// What the backward pass reads in place of computing it again; null where it must compute.
template <class T>
struct EncoderKept {
  T *u, *mixed, *sum1, *sum2;  // [B, T, d]: conv(x); the heads' outputs; what the two norms take in
};

}  // namespace ak

AK_FOR_EACH_ISA(
    // kept.u may be wanted alone: it is the convolution's output.
    template <class T> void local_encoder_layer(const EncoderLayer<T>& layer, const T* x, T* y, const EncoderKept<T>& kept);
    // grad and grad_u may be null: zero. dx may be null: not wanted.
    template <class T> void local_encoder_layer_backward(const EncoderLayer<T>& layer, const T* x, const T* grad, const T* grad_u,
                                                         const EncoderKept<T>& kept, T* dx, const EncoderParameters<T>& gradients);)
