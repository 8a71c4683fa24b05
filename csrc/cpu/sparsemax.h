// Sparsemax over the rows of a contiguous [rows, n] array, and its gradient.
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(
    template <class T> void sparsemax(const T* x, T* mask, int64_t rows, int64_t n);
    template <class T> void sparsemax_backward(const T* grad, const T* mask, T* dx, int64_t rows, int64_t n);)
