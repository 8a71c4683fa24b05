// Sparsemax of rows without a sort (Martins & Astudillo 2016, arXiv:1602.02068).
//
// The threshold tau is the root of f(tau) = sum max(z - tau, 0) - 1, which is convex, decreasing and piecewise linear.
// Newton's iteration from the left of the root, tau <- (sum_{z > tau} z - 1) / |{z > tau}|, climbs to it monotonically and ends
// exactly: once the support stops shrinking, tau is the solution on that piece. A handful of passes over a row that sits in L1.
//
// A pass over a short row is bound by the latency of its additions and of the division, not by their number; so a few rows
// are taken side by side.
#pragma once

#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

constexpr int kRowsAtOnce = 4;

// Elements of scratch a row of n values needs: whole vectors.
template <class T>
constexpr int64_t padded(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Rows first .. first + R - 1: reads value(row, pack, j), writes the mask through emit(row, pack, j, mask). A row where softmax
// would give NaN (a NaN or +inf in it, or every value -inf) is emitted as NaN. `z`: scratch of R * padded<T>(n) elements.
template <int R, class T, class Value, class Emit>
inline void sparsemax_rows(int64_t first, int64_t n, T* z, const Value& value, const Emit& emit) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  constexpr T minus_inf = -std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const int64_t end = padded<T>(n);

  T tau[R], support[R];
  for (int r = 0; r < R; ++r) {
    T* row = z + r * end;
    store(row + end - lanes, splat<V>(minus_inf));  // padding never enters the support
    V top = splat<V>(minus_inf);                    // maximum(v, top) passes over NaN
    T top_of_short_row = minus_inf;
    for_each_pack<T>(n, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      const P v = value(first + r, pack, j);
      store(row + j, v);
      if constexpr (sizeof(P) == sizeof(V))
        top = maximum<V>(v, top);
      else
        top_of_short_row = maximum<T>(v, top_of_short_row);
    });
    const T max = maximum<T>(max_lanes<T>(top), top_of_short_row);
    // Relative to the maximum all that matters lies in [-1, 0], and no sum loses digits to a large common offset.
    // max - max is 0, or NaN for an infinite maximum, which then poisons the row.
    for (int64_t j = 0; j < end; j += lanes) store(row + j, (load<V>(row + j) - max) + (max - max));
    tau[r] = static_cast<T>(-1);  // f(-1) >= 0: the maximum alone gives 1
    support[r] = static_cast<T>(n) + 1;
  }

  const V one = splat<V>(static_cast<T>(1));
  for (bool moved = true; moved;) {
    V inside[R] = {}, count[R] = {};
    for (int64_t j = 0; j < end; j += lanes)
      for (int r = 0; r < R; ++r) {
        const V v = load<V>(z + r * end + j);
        const auto outside = v <= splat<V>(tau[r]);  // a NaN is not: it gets into the sum and shows there
        inside[r] += outside ? V{} : v;
        count[r] += outside ? V{} : one;
      }
    moved = false;
    for (int r = 0; r < R; ++r) {
      const T size = sum_lanes<T>(count[r]), next = (sum_lanes<T>(inside[r]) - static_cast<T>(1)) / size;
      const bool smaller = size < support[r];  // after the last step it is equal, and tau stays
      tau[r] = smaller ? next : tau[r];
      support[r] = smaller ? size : support[r];
      moved |= smaller & (next == next);
    }
  }

  for (int r = 0; r < R; ++r)
    for_each_pack<T>(n, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      const P p = maximum<P>(load<P>(z + r * end + j) - tau[r], P{});
      emit(first + r, pack, j, tau[r] == tau[r] ? p : splat<P>(nan));
    });
}

// Rows [begin, end), a few at a time. What a row gives does not depend on its neighbours.
template <class T, class Value, class Emit>
inline void sparsemax_range(int64_t begin, int64_t end, int64_t n, const Value& value, const Emit& emit) {
  T* z = new T[static_cast<size_t>(kRowsAtOnce * padded<T>(n))];
  int64_t i = begin;
  for (; i + kRowsAtOnce <= end; i += kRowsAtOnce) sparsemax_rows<kRowsAtOnce>(i, n, z, value, emit);
  for (; i < end; ++i) sparsemax_rows<1>(i, n, z, value, emit);
  delete[] z;
}

}  // namespace
}  // namespace ak::AK_ISA
