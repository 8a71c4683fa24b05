// Stacks of GRU and LSTM layers over a sequence, forward and backward.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "sequence.h"

namespace ak {

struct RecurrentSizes {
  int64_t batch, steps, input, hidden, layers;
  int64_t width(int64_t layer) const { return layer == 0 ? input : hidden; }
};

// One layer's parameters in torch's layout; biases null where there are none.
template <class T>
struct RecurrentLayer {
  const T *weight_ih, *weight_hh, *bias_ih, *bias_hh;
};

// What forward keeps for backward, time before batch: gates [layers, T, B, 4H]; hidden [layers or layers - 1, T, B, H], of the layers
// that `output` does not show; cell [layers, T, B, H] of an LSTM. All null where nothing is kept.
template <class T>
struct RecurrentKept {
  T *gates, *hidden, *cell;
};

template <class T>
struct RecurrentArguments {
  RecurrentSizes sizes;
  const RecurrentLayer<T>* layer;
  SequenceView<const T> x;
  const T *h0, *c0;  // [layers, B, H] or null: zeros
  uint64_t seed;
  double dropout;
};

// Gradients coming in (null: zero) and going out (dx may be null; dh0 and dc0 are where there is no h0 or c0). dweights: every layer's
// parameters in torch's order, end to end.
template <class T>
struct RecurrentGradients {
  SequenceView<const T> output;
  const T *h_n, *c_n;
  SequenceView<T> dx;
  T *dh0, *dc0, *dweights;
};

}  // namespace ak

AK_FOR_EACH_ISA(
template <class T>
void recurrent(bool lstm, const RecurrentArguments<T>& arguments, const SequenceView<T>& output, T* h_n, T* c_n,
               const RecurrentKept<T>& kept);
template <class T>
void recurrent_backward(bool lstm, const RecurrentArguments<T>& arguments, const SequenceView<const T>& output,
                        const RecurrentKept<const T>& kept, const RecurrentGradients<T>& gradients);)
