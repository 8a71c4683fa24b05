#include "attentive_mask.h"

#include "../common/parallel.h"
#include "sparsemax_backward_row.h"
#include "sparsemax_row.h"

namespace ak::AK_ISA {
namespace {

// sum of -m * log(m + eps).
template <class T>
T row_entropy(const T* m, int64_t n, T eps) {
  return -sum_packs<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    const P p = load<P>(m + j);
    return static_cast<P>(p * log<P, T>(p + eps));
  });
}

}  // namespace

template <class T>
void attentive_mask(const T* logits, const T* prior, T* mask, T* entropy, T* new_prior, int64_t rows, int64_t n, T relax,
                    T eps) {
  parallel_for(rows, 16384 / n, [&](int64_t begin, int64_t end) {
    sparsemax_range<T>(
        begin, end, n,
        [&](int64_t i, auto pack, int64_t j) {
          using P = decltype(pack);
          return static_cast<P>(load<P>(logits + i * n + j) * load<P>(prior + i * n + j));
        },
        [&](int64_t i, auto, int64_t j, auto m) { store(mask + i * n + j, m); });
    for (int64_t i = begin; i < end; ++i) {
      const T *m = mask + i * n, *q = prior + i * n;
      entropy[i] = row_entropy(m, n, eps);
      if (new_prior != nullptr)
        for (int64_t j = 0; j < n; ++j) new_prior[i * n + j] = q[j] * (relax - m[j]);
    }
  });
}

template <class T>
void attentive_mask_backward(const T* grad_mask, const T* grad_entropy, const T* grad_new_prior, const T* logits,
                             const T* prior, const T* mask, T* dlogits, T* dprior, int64_t rows, int64_t n, T relax, T eps) {
  parallel_for(rows, 16384 / n, [&](int64_t begin, int64_t end) {
    T* g = new T[static_cast<size_t>(padded<T>(n))];
    for (int64_t i = begin; i < end; ++i) {
      const T *m = mask + i * n, *q = prior + i * n, *gq = grad_new_prior + (grad_new_prior != nullptr ? i * n : 0);
      const T entropy = grad_entropy != nullptr ? grad_entropy[i] : 0;
      // All that reaches the mask: from its uses, from the entropy, from the next prior.
      for_each_pack<T>(n, [&](auto pack, int64_t j) {
        using P = decltype(pack);
        P v = load<P>(grad_mask + i * n + j);
        if (entropy != 0) {
          const P p = load<P>(m + j);
          v -= entropy * (log<P, T>(p + eps) + p / (p + eps));
        }
        if (grad_new_prior != nullptr) v -= load<P>(gq + j) * load<P>(q + j);
        store(g + j, v);
      });
      sparsemax_backward_row<T>(
          n, m, [&](auto pack, int64_t j) { return load<decltype(pack)>(g + j); },
          [&](auto pack, int64_t j, auto dz) {
            using P = decltype(pack);
            store(dlogits + i * n + j, static_cast<P>(dz * load<P>(q + j)));
            if (dprior == nullptr) return;
            P dq = dz * load<P>(logits + i * n + j);
            if (grad_new_prior != nullptr) dq += load<P>(gq + j) * (relax - load<P>(m + j));
            store(dprior + i * n + j, dq);
          });
    }
    delete[] g;
  });
}

#define AK_INSTANTIATE(T)                                                                                           \
  template void attentive_mask<T>(const T*, const T*, T*, T*, T*, int64_t, int64_t, T, T);                          \
  template void attentive_mask_backward<T>(const T*, const T*, const T*, const T*, const T*, const T*, T*, T*, int64_t, \
                                           int64_t, T, T);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
