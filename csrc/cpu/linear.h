// The product of a linear layer, of masked rows where there is a mask: u = (x * mask) @ weight.T, and its gradients.
// x, mask [rows, depth], weight [columns, depth], u [rows, columns]; mask may be null.
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(
    template <class T> void linear(const T* x, const T* weight, const T* mask, T* u, int64_t rows, int64_t depth,
                                   int64_t columns);
    // dx, dweight, dmask may be null: not wanted. add_*: it holds what the gradient is added to.
    template <class T> void linear_backward(const T* grad, const T* x, const T* weight, const T* mask, T* dx, T* dweight,
                                            T* dmask, int64_t rows, int64_t depth, int64_t columns, bool add_dx,
                                            bool add_dweight);)
