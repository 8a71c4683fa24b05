// The state-frequency-memory recurrence over all steps, and its gradient. H hidden units, F frequencies, D features; the columns of
// the weights are the gates [input H | state H | cell H | output H | frequency F].
#pragma once

#include <cstdint>

#include "../common/isa.h"

namespace ak {

struct SfmSizes {
  int64_t batch, steps, features, hidden, frequencies;
  int64_t gates() const { return 4 * hidden + frequencies; }  // columns of the weights
};

template <class T>
struct SfmInputs {
  const T* x;                          // [B, T, D] in any layout
  int64_t x_row, x_step, x_feature;    // its strides
  const T *weight_x, *weight_h, *bias;  // [D, 4H + F], [H, 4H + F], [4H + F]
  const T *weight_a, *bias_a;           // [F], [H]
  const T* waves;                      // [T, 2, F]: cosine and sine of each frequency at each step
  const T* mask;                       // [B, H], a factor on the hidden state where it enters the gates; or null
};

// What the forward pass keeps for the backward pass; T is const where it is read.
template <class T>
struct SfmKept {
  T* hidden;  // [B, T, H], after each step; or null, to keep nothing
  T* gates;   // [B, T, 4H + F], opened: hard sigmoids, tanh of the cell's
};

template <class T>
struct SfmGradients {
  T* x;  // [B, T, D], or null where it is not asked for
  T *weight_x, *weight_h, *bias, *weight_a, *bias_a;
};

}  // namespace ak

AK_FOR_EACH_ISA(
    // out [B, H]: the last hidden state.
    template <class T> void sfm(const SfmSizes& sizes, const SfmInputs<T>& in, T* out, const SfmKept<T>& kept);
    template <class T> void sfm_backward(const SfmSizes& sizes, const SfmInputs<T>& in, const T* grad, const SfmKept<const T>& kept,
                                         const SfmGradients<T>& out);)
