#include "sparsemax.h"

#include "../common/parallel.h"
#include "sparsemax_backward_row.h"
#include "sparsemax_row.h"

namespace ak::AK_ISA {

template <class T>
void sparsemax(const T* x, T* mask, int64_t rows, int64_t n) {
  parallel_for(rows, 16384 / n, [&](int64_t begin, int64_t end) {
    sparsemax_range<T>(
        begin, end, n, [&](int64_t i, auto pack, int64_t j) { return load<decltype(pack)>(x + i * n + j); },
        [&](int64_t i, auto, int64_t j, auto m) { store(mask + i * n + j, m); });
  });
}

template <class T>
void sparsemax_backward(const T* grad, const T* mask, T* dx, int64_t rows, int64_t n) {
  parallel_for(rows, 16384 / n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* g = grad + i * n;
      T* d = dx + i * n;
      sparsemax_backward_row<T>(
          n, mask + i * n, [&](auto pack, int64_t j) { return load<decltype(pack)>(g + j); },
          [&](auto, int64_t j, auto v) { store(d + j, v); });
    }
  });
}

template void sparsemax<float>(const float*, float*, int64_t, int64_t);
template void sparsemax<double>(const double*, double*, int64_t, int64_t);
template void sparsemax_backward<float>(const float*, const float*, float*, int64_t, int64_t);
template void sparsemax_backward<double>(const double*, const double*, double*, int64_t, int64_t);

}  // namespace ak::AK_ISA
