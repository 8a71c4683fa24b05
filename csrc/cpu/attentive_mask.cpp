#include "attentive_mask.h"

#include "../common/parallel.h"
#include "sparsemax_backward_row.h"
#include "sparsemax_row.h"

namespace ak::AK_ISA {

template <class T>
void attentive_mask(const T* logits, const T* prior, T* mask, T* entropy, T* new_prior, int64_t rows, int64_t n, T relax,
                    T eps) {
  parallel_for(rows, 16384 / n, [&](int64_t begin, int64_t end) {
    T* z = new T[padded<T>(n)];
    for (int64_t i = begin; i < end; ++i) {
      const T *a = logits + i * n, *q = prior + i * n;
      T* m = mask + i * n;
      const bool ok = sparsemax_row<T>(
          n, z,
          [&](auto pack, int64_t j) { return load<decltype(pack)>(a + j) * load<decltype(pack)>(q + j); },
          [&](auto pack, int64_t j, auto v) { store(m + j, v); (void)pack; });
      if (!ok)
        for (int64_t j = 0; j < n; ++j) m[j] = std::numeric_limits<T>::quiet_NaN();
      T h = 0;
      for (int64_t j = 0; j < n; ++j)
        if (m[j] != 0) h -= m[j] * std::log(m[j] + eps);  // the support is small: few logarithms are taken
      entropy[i] = h;
      if (new_prior != nullptr)
        for (int64_t j = 0; j < n; ++j) new_prior[i * n + j] = q[j] * (relax - m[j]);
    }
    delete[] z;
  });
}

template <class T>
void attentive_mask_backward(const T* grad_mask, const T* grad_entropy, const T* grad_new_prior, const T* logits,
                             const T* prior, const T* mask, T* dlogits, T* dprior, int64_t rows, int64_t n, T relax, T eps) {
  parallel_for(rows, 16384 / n, [&](int64_t begin, int64_t end) {
    T* g = new T[padded<T>(n)];
    for (int64_t i = begin; i < end; ++i) {
      const T *m = mask + i * n, *q = prior + i * n, *a = logits + i * n, *gm = grad_mask + i * n;
      // All that reaches the mask: from its uses, from the entropy, from the next prior. The sparsemax gradient asks for
      // support columns only.
      std::memcpy(g, gm, static_cast<size_t>(n) * sizeof(T));
      const T ge = grad_entropy[i];
      if (ge != 0)
        for (int64_t j = 0; j < n; ++j)
          if (m[j] != 0) g[j] -= ge * (std::log(m[j] + eps) + m[j] / (m[j] + eps));
      if (grad_new_prior != nullptr)
        for (int64_t j = 0; j < n; ++j) g[j] -= grad_new_prior[i * n + j] * q[j];
      sparsemax_backward_row<T>(
          n, m, [&](auto pack, int64_t j) { return load<decltype(pack)>(g + j); },
          [&](auto pack, int64_t j, auto dz) {
            using P = decltype(pack);
            store(dlogits + i * n + j, static_cast<P>(dz * load<P>(q + j)));
            if (dprior == nullptr) return;
            P dq = dz * load<P>(a + j);
            if (grad_new_prior != nullptr) dq += load<P>(grad_new_prior + i * n + j) * (relax - load<P>(m + j));
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
