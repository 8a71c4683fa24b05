// tanh(W x + b) of each step of a sequence, forward and backward: ALSTM's input layer.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "sequence.h"

namespace ak {

template <class T>
struct LinearTanh {
  int64_t batch, steps, inputs, outputs;
  SequenceView<const T> x;  // [B, T, inputs]
  const T *weight, *bias;   // [outputs, inputs], [outputs] or null
};

}  // namespace ak

AK_FOR_EACH_ISA(
// y [B, T, outputs].
template <class T>
void linear_tanh(const LinearTanh<T>& a, T* y);
// From y's gradient `grad`: dx [B, T, inputs] or null, dweight, dbias.
template <class T>
void linear_tanh_backward(const LinearTanh<T>& a, const T* y, const T* grad, T* dx, T* dweight, T* dbias);)
