// TabNet's attentive mask (Arik & Pfister 2019, arXiv:1908.07442) in one pass a row: sparsemax(logits * prior), the row's
// entropy, and, when asked, the prior of the next step, prior * (relax - mask).
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(
    // logits, prior, mask: [rows, n]; entropy: [rows]; new_prior: [rows, n] or null.
    template <class T> void attentive_mask(const T* logits, const T* prior, T* mask, T* entropy, T* new_prior, int64_t rows,
                                           int64_t n, T relax, T eps);
    // grad_entropy, grad_new_prior and dprior may be null.
    template <class T> void attentive_mask_backward(const T* grad_mask, const T* grad_entropy, const T* grad_new_prior,
                                                    const T* logits, const T* prior, const T* mask, T* dlogits, T* dprior,
                                                    int64_t rows, int64_t n, T relax, T eps);)
