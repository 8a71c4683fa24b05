// The gradient of sparsemax on one row: on the support S = {mask > 0} the gradient less its mean over S, zero elsewhere.
#pragma once

#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

// Reads the incoming gradient through gradient(pack, j), which is asked twice for each column, and writes through emit.
// A NaN in the mask is a row without a meaning: it stays NaN.
template <class T, class Gradient, class Emit>
inline void sparsemax_backward_row(int64_t n, const T* mask, const Gradient& gradient, const Emit& emit) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  V inside = V{}, count = V{};
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) {
    const V m = load<V>(mask + j);
    inside += m != V{} ? gradient(V{}, j) : V{};
    count += m != V{} ? splat<V>(static_cast<T>(1)) + (m - m) : V{};  // m - m is 0, or NaN for a NaN
  }
  T sum = sum_lanes<T>(inside), size = sum_lanes<T>(count);
  for (; j < n; ++j)
    if (mask[j] != 0) {
      sum += gradient(T{}, j);
      size += static_cast<T>(1) + (mask[j] - mask[j]);
    }
  const T mean = sum / (size > 0 || size != size ? size : static_cast<T>(1));
  for_each_pack<T>(n, [&](auto pack, int64_t k) {
    using P = decltype(pack);
    emit(pack, k, load<P>(mask + k) != P{} ? gradient(pack, k) - mean : P{});
  });
}

}  // namespace
}  // namespace ak::AK_ISA
