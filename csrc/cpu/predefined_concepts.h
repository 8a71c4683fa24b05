// HIST's predefined concepts: of a day's stocks x_i and their membership w_ik, concept k is the sum of w_ik / (S_k w_ik + 1) x_i with
// S_k = sum_i w_ik. x [N, H]; membership [., concepts], row rows[i] of which belongs to stock i (no rows: row i); out [days, concepts, H];
// size [days, concepts], S, kept for the backward pass; day d has the rows [offsets[d], offsets[d + 1]) of x.
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(
    template <class T> void predefined_concepts(const T* x, const T* membership, const int64_t* offsets, const int64_t* rows,
                                                int64_t days, int64_t concepts, int64_t hidden, T* out, T* size);
    template <class T> void predefined_concepts_backward(const T* grad, const T* membership, const int64_t* offsets,
                                                         const int64_t* rows, int64_t days, int64_t concepts, int64_t hidden,
                                                         const T* size, T* dx);)
