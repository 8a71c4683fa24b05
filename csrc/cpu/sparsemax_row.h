// Sparsemax of one row without a sort (Martins & Astudillo 2016, arXiv:1602.02068).
//
// The threshold tau is the root of f(tau) = sum max(z - tau, 0) - 1, which is convex, decreasing and piecewise linear.
// Newton's iteration from the left of the root, tau <- (sum_{z > tau} z - 1) / |{z > tau}|, climbs to it monotonically and ends
// exactly: once the support stops shrinking, tau is the solution on that piece. A handful of passes over a row that sits in L1.
#pragma once

#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

// Room for a row of n values in `scratch`: whole vectors, padded.
template <class T>
constexpr int64_t padded(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T> + kLanes<T>;
}

// Reads value(pack, j) for the columns, writes the mask through emit(pack, j, mask). Returns false, with nothing emitted,
// where softmax would give NaN: a NaN or +inf in the row, or every value -inf. `z` is scratch of padded<T>(n) elements.
template <class T, class Value, class Emit>
inline bool sparsemax_row(int64_t n, T* z, const Value& value, const Emit& emit) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  constexpr T minus_inf = -std::numeric_limits<T>::infinity();
  const int64_t end = (n + lanes - 1) / lanes * lanes;

  store(z + n / lanes * lanes, splat<V>(minus_inf));  // padding never enters the support
  V top = splat<V>(minus_inf);
  for_each_pack<T>(n, [&](auto pack, int64_t j) { store(z + j, value(pack, j)); });
  for (int64_t j = 0; j < end; j += lanes) top = maximum<V>(load<V>(z + j), top);
  const T max = max_lanes<T>(top);
  if (!(max > minus_inf) || !(max < std::numeric_limits<T>::infinity())) return false;

  // Relative to the maximum, everything that matters lies in [-1, 0]; nothing can overflow upwards.
  V total = V{};
  for (int64_t j = 0; j < end; j += lanes) {
    const V shifted = load<V>(z + j) - max;
    store(z + j, shifted);
    total += shifted == minus_inf ? V{} : shifted;  // NaN survives this comparison and poisons the total
  }
  const T sum = sum_lanes<T>(total);
  if (sum != sum) return false;

  T tau = static_cast<T>(-1);  // f(-1) >= 0: the maximum alone gives 1
  int64_t support = n + 1;
  for (;;) {
    V inside = V{};
    auto count = V{} > V{};  // integer lanes, all zero
    for (int64_t j = 0; j < end; j += lanes) {
      const V v = load<V>(z + j);
      const auto member = v > tau;
      inside += member ? v : V{};
      count -= member;
    }
    int64_t size = 0;
    for (int64_t i = 0; i < lanes; ++i) size += count[i];
    if (size >= support) break;
    support = size;
    tau = (sum_lanes<T>(inside) - static_cast<T>(1)) / static_cast<T>(support);
  }

  for_each_pack<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    emit(pack, j, maximum<P>(load<P>(z + j) - tau, P{}));
  });
  return true;
}

}  // namespace
}  // namespace ak::AK_ISA
