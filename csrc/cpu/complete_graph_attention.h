// softmax_j(leaky_relu(s_i + t_j)) h_j over all stocks j of i's day, in O(N log N + N H); see ops/complete_graph_attention/op.py.
// s, t [N]; h, out [N, H]; day d is the rows [offsets[d], offsets[d + 1]).
//
// Kept for the backward pass: order [2, N], the rows of each day by falling s and by falling t; scale [2, N], by place in the order of
// s, what turns the two sums of row i into its output (1 / Z_i and c_i / Z_i); slope [N, H], the derivative of out_i by s_i.
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(
    // slope may be null: not wanted.
    template <class T> void complete_graph_attention(const T* s, const T* t, const T* h, const int64_t* offsets, int64_t days,
                                                     int64_t rows, int64_t hidden, double negative_slope, T* out, T* slope, double* scale,
                                                     int32_t* order);
    template <class T> void complete_graph_attention_backward(const T* grad, const T* s, const T* t, const T* h,
                                                              const int64_t* offsets, int64_t days, int64_t rows, int64_t hidden,
                                                              double negative_slope, const T* out, const T* slope, const double* scale,
                                                              const int32_t* order, T* ds, T* dt, T* dh);)
