// TabNet's GLU block after its linear layer: ghost batch norm, gate and scaled residual in one kernel.
// out = (residual + v[:, :h] * sigmoid(v[:, h:])) * scale with v = norm(u); u is [rows, 2h].
#pragma once

#include <cstdint>

#include "ghost_batch_norm.h"

AK_FOR_EACH_ISA(
    // norm false: v = u (+ linear_bias). residual may be null.
    template <class T> void glu_block(const T* u, const T* residual, T* out, int64_t h, const Chunks& chunks, bool training,
                                      bool norm, const NormInputs<T>& in, const NormState<T>& state, T scale);
    // mean null: there was no norm. dresidual [rows, h] may be null.
    template <class T> void glu_block_backward(const T* grad, const T* u, const T* weight, const T* bias, const T* mean,
                                               const T* rstd, int64_t h, const Chunks& chunks, bool training, T scale, T* du,
                                               T* dresidual, T* dweight, T* dbias);)
