// ALSTM's attention over time, forward and backward.
#pragma once

#include <cstdint>

#include "../common/isa.h"

namespace ak {

template <class T>
struct AttentionPool {
  int64_t batch, steps, hidden, attention;  // B, T, H, A
  const T *h, *weight, *bias, *score;       // [B, T, H], [A, H], [A] or null, [A]
  uint64_t seed;
  double dropout;
};

// Gradients coming in (weights may be null) and going out.
template <class T>
struct AttentionPoolGradients {
  const T *out, *weights;
  T *dh, *dweight, *dbias, *dscore;
};

}  // namespace ak

AK_FOR_EACH_ISA(
    // out [B, 2H], weights [B, T].
    template <class T> void attention_pool(const AttentionPool<T>& a, T* out, T* weights);
    template <class T> void attention_pool_backward(const AttentionPool<T>& a, const T* weights,
                                                    const AttentionPoolGradients<T>& g);)
