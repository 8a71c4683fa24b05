// The gradient of sparsemax on one row: on the support S = {mask > 0} the gradient less its mean over S, zero elsewhere.
#pragma once

#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

// Reads the incoming gradient through gradient(pack, j), which is asked twice for each column, and writes through emit.
// A NaN in the mask is a row without a meaning: it stays NaN.
template <class T, class Gradient, class Emit>
inline void sparsemax_backward_row(int64_t n, const T* mask, const Gradient& gradient, const Emit& emit) {
  // m - m is 0, or NaN for a NaN.
  const T sum = sum_packs<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    const P m = load<P>(mask + j);
    return m != P{} ? static_cast<P>(gradient(pack, j) + (m - m)) : P{};
  });
  const T size = sum_packs<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    return load<P>(mask + j) != P{} ? splat<P>(static_cast<T>(1)) : P{};
  });
  const T mean = sum / maximum<T>(size, static_cast<T>(1));
  for_each_pack<T>(n, [&](auto pack, int64_t k) {
    using P = decltype(pack);
    emit(pack, k, load<P>(mask + k) != P{} ? gradient(pack, k) - mean : P{});
  });
}

}  // namespace
}  // namespace ak::AK_ISA
