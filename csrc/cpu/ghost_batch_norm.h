// Ghost batch norm over the rows of a contiguous [rows, n] array, forward and backward.
#pragma once

#include <cstdint>

#include "../common/chunks.h"
#include "../common/isa.h"

namespace ak {

// Pointers a norm reads and writes; weight, bias, running_* and linear_bias may be null.
template <class T>
struct NormInputs {
  const T *weight, *bias, *running_mean, *running_var, *linear_bias;
  double momentum, eps;
};
template <class T>
struct NormState {
  T *mean, *rstd, *new_running_mean, *new_running_var;  // [chunks, n] twice, [n] twice
};

}  // namespace ak

AK_FOR_EACH_ISA(
    template <class T> void ghost_batch_norm(const T* x, T* y, int64_t n, const Chunks& chunks, bool training,
                                             const NormInputs<T>& in, const NormState<T>& state);
    template <class T> void ghost_batch_norm_backward(const T* grad, const T* x, const T* weight, const T* mean,
                                                      const T* rstd, int64_t n, const Chunks& chunks, bool training, T* dx,
                                                      T* dweight, T* dbias);)
