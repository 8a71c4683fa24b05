// The gradient of sparsemax on one row: on the support S = {mask > 0} the gradient less its mean over S, zero elsewhere.
#pragma once

#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

// Reads the incoming gradient through gradient(pack, j), which is asked twice for each column, and writes through emit.
// A NaN in the mask is a row without a meaning: it stays NaN. `sparse`: where the mask has nothing the gradient is not read.
template <bool sparse, class T, class Gradient, class Emit>
inline void sparsemax_backward_row_of(int64_t n, const T* mask, const Gradient& gradient, const Emit& emit) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  const auto terms = [&](auto pack, int64_t j, auto& inside, auto& count) {
    using P = decltype(pack);
    const P m = load<P>(mask + j);
    inside = m != P{} ? static_cast<P>(gradient(pack, j) + (m - m)) : P{};  // m - m is 0, or NaN for a NaN
    count = m != P{} ? splat<P>(static_cast<T>(1)) : P{};
  };
  const auto nothing = [&](int64_t j) { return sparse && nonzero_lanes<T>(load<V>(mask + j)) == 0; };
  T sum = 0, size = 0;
  if (n < lanes) {
    for (int64_t j = 0; j < n; ++j) {
      T inside, count;
      terms(T{}, j, inside, count);
      sum += inside;
      size += count;
    }
  } else {
    V inside[2] = {}, count[2] = {};  // two chains, to hide the latency of one
    const auto add = [&](int64_t j, int chain) {
      if (nothing(j)) return;
      V i, c;
      terms(V{}, j, i, c);
      inside[chain] += i;
      count[chain] += c;
    };
    int64_t j = 0;
    for (; j + 2 * lanes <= n; j += 2 * lanes) {
      add(j, 0);
      add(j + lanes, 1);
    }
    if (j + lanes <= n) add(j, 0);
    if (n % lanes != 0) {
      V i, c;
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
    if constexpr (sizeof(P) == sizeof(V))
      if (nothing(k)) return emit(pack, k, P{});
    emit(pack, k, load<P>(mask + k) != P{} ? gradient(pack, k) - mean : P{});
  });
}

// The mask of a row of thousands is mostly nothing; in a shorter one the branch, hard to foretell, costs more than what it spares.
template <class T, class Gradient, class Emit>
inline void sparsemax_backward_row(int64_t n, const T* mask, const Gradient& gradient, const Emit& emit) {
  constexpr int64_t kSparseRow = 4096;
  if (n < kSparseRow)
    sparsemax_backward_row_of<false>(n, mask, gradient, emit);
  else
    sparsemax_backward_row_of<true>(n, mask, gradient, emit);
}

}  // namespace
}  // namespace ak::AK_ISA
