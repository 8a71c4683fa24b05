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
  const auto terms = [&](auto pack, int64_t j, auto& inside, auto& count) {
    using P = decltype(pack);
    const P m = load<P>(mask + j);
    inside = m != P{} ? static_cast<P>(gradient(pack, j) + (m - m)) : P{};  // m - m is 0, or NaN for a NaN
    count = m != P{} ? splat<P>(static_cast<T>(1)) : P{};
  };
  T sum = 0, size = 0;
  if (n < lanes) {
    for (int64_t j = 0; j < n; ++j) {
      T inside, count;
      terms(T{}, j, inside, count);
      sum += inside;
      size += count;
    }
  } else {
    V inside[2] = {}, count[2] = {}, i, c;  // two chains, to hide the latency of one
    for (int64_t j = 0; j + lanes <= n; j += lanes) {
      terms(V{}, j, i, c);
      inside[j / lanes % 2] += i;
      count[j / lanes % 2] += c;
    }
    if (n % lanes != 0) {
      terms(V{}, n - lanes, i, c);
      inside[0] += keep_last<T>(i, n % lanes);
      count[0] += keep_last<T>(c, n % lanes);
    }
    sum = sum_lanes<T>(inside[0] + inside[1]);
    size = sum_lanes<T>(count[0] + count[1]);
  }
  const T mean = sum / maximum<T>(size, static_cast<T>(1));
  for_each_pack<T>(n, [&](auto pack, int64_t k) {
    using P = decltype(pack);
    emit(pack, k, load<P>(mask + k) != P{} ? gradient(pack, k) - mean : P{});
  });
}

}  // namespace
}  // namespace ak::AK_ISA
