// softmax over concepts of the cosine similarity, back to the concepts: out_i = sum_j p_ij c_j, p_ij ~ exp(cos(x_i, c_j)), where a
// concept whose row sums to zero takes no part. x, out [N, H]; c [M, H]; day d has the rows [offsets[d], offsets[d + 1]) of x and
// [concept_offsets[d], concept_offsets[d + 1]) of c. total [N] is the softmax's denominator, kept for the backward pass.
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(
    template <class T> void concept_attention(const T* x, const T* c, const int64_t* offsets, const int64_t* concept_offsets,
                                              int64_t days, int64_t hidden, T* out, T* total);
    template <class T> void concept_attention_backward(const T* grad, const T* x, const T* c, const int64_t* offsets,
                                                       const int64_t* concept_offsets, int64_t days, int64_t hidden, const T* out,
                                                       const T* total, T* dx, T* dc);)
