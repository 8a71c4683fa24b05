// HIST's hidden concepts: every stock gives itself, weighted by the similarity, to its most similar other stock; a stock that was chosen
// counts itself too. x, concepts [N, H]. Kept for the backward pass: choice [N], the row chosen, or -1 where no similarity is positive;
// value [N], the similarity. Where a day's x is not finite throughout, all of the day is NaN, as in the original's product with zeros.
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(
    template <class T> void hidden_concepts(const T* x, const int64_t* offsets, int64_t days, int64_t hidden, T* concepts, T* value,
                                            int32_t* choice);
    template <class T> void hidden_concepts_backward(const T* grad, const T* x, const int64_t* offsets, int64_t days, int64_t hidden,
                                                     const T* value, const int32_t* choice, T* dx);)
