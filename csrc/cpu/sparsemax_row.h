// Sparsemax of rows without a sort (Martins & Astudillo 2016, arXiv:1602.02068).
//
// The threshold tau is the root of f(tau) = sum max(z - tau, 0) - 1, which is convex, decreasing and piecewise linear.
// Newton's iteration from the left of the root, tau <- (sum_{z > tau} z - 1) / |{z > tau}|, climbs to it monotonically and ends
// exactly: once the support stops changing, tau is the solution on that piece.
//
// Any part of the row has a threshold no larger than the whole row's, so the iteration first runs on one register: the largest
// value of each lane, which is nearly always all of the support. Mostly one pass over the whole row then remains, to confirm it.
// A pass over a short row is bound by the latency of its additions and of the division, not by their number; so a few rows are
// taken side by side. A long row is taken by itself, as several would not stay in the nearest cache, and in blocks: the threshold
// climbs, so a block whose largest value lies below it is passed over from then on, and mostly few are not.
#pragma once

#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

constexpr int kRowsAtOnce = 4;
constexpr int64_t kLongRow = 1024;  // values, of which a few rows fill the nearest cache
constexpr int64_t kBlockPacks = 8;

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

  const V one = splat<V>(static_cast<T>(1));
  V top[R];  // of each lane, from the row's maximum
  T max[R], tau[R];
  for (int r = 0; r < R; ++r) {
    T* row = z + r * end;
    store(row + end - lanes, splat<V>(minus_inf));  // padding never enters the support
    top[r] = splat<V>(minus_inf);                   // maximum(v, top) passes over NaN
    for_each_pack<T>(n, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      const P v = value(first + r, pack, j);
      store(row + j, v);
      // Each value in one lane: of the last pack, which overlaps the one before it, only the new ones.
      if constexpr (sizeof(P) == sizeof(V))
        top[r] = maximum<V>(j % lanes == 0 ? v : keep_last<T>(v, n % lanes, minus_inf), top[r]);
    });
    if (n < lanes) top[r] = maximum<V>(load<V>(row), top[r]);
    // Distances from the maximum: all that matters lies in [-1, 0], and no sum loses digits to a large common offset. An infinite
    // maximum has no distance from itself: the NaN poisons the row.
    max[r] = max_lanes<T>(top[r]);
    top[r] = top[r] - max[r];
    tau[r] = static_cast<T>(-1);  // f(-1) >= 0: the maximum alone gives 1
  }
  for (int step = 0; step < 3; ++step)
    for (int r = 0; r < R; ++r) {
      const auto outside = top[r] <= splat<V>(tau[r]);
      const T inside = sum_lanes<T>(outside ? V{} : top[r]), count = sum_lanes<T>(outside ? V{} : one);
      tau[r] = (inside - static_cast<T>(1)) / count;
    }

  for (bool moved = true; moved;) {
    V inside[R] = {}, count[R] = {};
    for (int64_t j = 0; j < end; j += lanes)
      for (int r = 0; r < R; ++r) {
        const V v = load<V>(z + r * end + j) - max[r];
        const auto outside = v <= splat<V>(tau[r]);  // a NaN is not: it gets into the sum and shows there
        inside[r] += outside ? V{} : v;
        count[r] += outside ? V{} : one;
      }
    moved = false;
    for (int r = 0; r < R; ++r) {
      // The step is f(tau) / |support|: without one, tau is the root.
      const T next = (sum_lanes<T>(inside[r]) - static_cast<T>(1)) / sum_lanes<T>(count[r]);
      moved |= next - tau[r] > std::numeric_limits<T>::epsilon();
      tau[r] = next;
    }
  }

  for (int r = 0; r < R; ++r)
    for_each_pack<T>(n, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      const P p = maximum<P>((load<P>(z + r * end + j) - max[r]) - tau[r], P{});
      emit(first + r, pack, j, tau[r] == tau[r] ? p : splat<P>(nan));
    });
}

// Row i of n >= kLongRow values, as sparsemax_rows. `z`: scratch of long_row_scratch<T>(n) elements.
template <class T, class Value, class Emit>
inline void sparsemax_long_row(int64_t i, int64_t n, T* z, const Value& value, const Emit& emit) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>, block = kBlockPacks * lanes;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t blocks = (n + block - 1) / block, end = blocks * block;
  T* const largest = z + end;  // of each block: values of the row, whose threshold is no larger than the row's
  const V one = splat<V>(static_cast<T>(1));
  for (int64_t j = n / lanes * lanes; j < end; j += lanes) store(z + j, splat<V>(-infinity));
  for (int64_t j = 0; j < padded<T>(blocks); j += lanes) store(largest + j, splat<V>(-infinity));
  for_each_pack<T>(n, [&](auto pack, int64_t j) { store(z + j, value(i, pack, j)); });

  V top = splat<V>(-infinity), rest = {};
  for (int64_t b = 0; b < blocks; ++b) {
    V of_block = splat<V>(-infinity);
    for (int64_t k = 0; k < kBlockPacks; ++k) {
      const V v = load<V>(z + b * block + k * lanes);
      of_block = maximum<V>(v, of_block);  // passes over NaN
      rest = v == v ? rest : v;
    }
    largest[b] = max_lanes<T>(of_block);
    top = maximum<V>(of_block, top);
  }
  const T max = max_lanes<T>(top), poison = sum_lanes<T>(rest);
  if (!(max < infinity) || max == -infinity || poison != poison) {
    for_each_pack<T>(n, [&](auto pack, int64_t j) { emit(i, pack, j, splat<decltype(pack)>(std::numeric_limits<T>::quiet_NaN())); });
    return;
  }

  T tau = -1;
  // One step, over the packs that `each` gives; false once there is none to take.
  const auto climb = [&](const auto& each) {
    V inside[2] = {}, count[2] = {};
    each([&](V values, int chain) {
      const V v = values - max;
      const auto within = v > splat<V>(tau);
      inside[chain] += within ? v : V{};
      count[chain] += within ? one : V{};
    });
    const T next = (sum_lanes<T>(inside[0] + inside[1]) - static_cast<T>(1)) / sum_lanes<T>(count[0] + count[1]);
    const bool moved = next - tau > std::numeric_limits<T>::epsilon();
    tau = next;
    return moved;
  };
  const auto of_blocks = [&](const auto& add) {
    for (int64_t b = 0; b < blocks; b += lanes) add(load<V>(largest + b), 0);
  };
  const auto of_row = [&](const auto& add) {
    for (int64_t b = 0; b < blocks; ++b)
      if (largest[b] - max > tau)
        for (int64_t k = 0; k < kBlockPacks; k += 2) {
          add(load<V>(z + b * block + k * lanes), 0);
          add(load<V>(z + b * block + (k + 1) * lanes), 1);
        }
  };
  while (climb(of_blocks)) {
  }
  while (climb(of_row)) {
  }
  for_each_pack<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    emit(i, pack, j, maximum<P>((load<P>(z + j) - max) - tau, P{}));
  });
}

template <class T>
constexpr int64_t long_row_scratch(int64_t n) {
  constexpr int64_t block = kBlockPacks * kLanes<T>;
  const int64_t blocks = (n + block - 1) / block;
  return blocks * block + padded<T>(blocks);
}

// Rows [begin, end), a few at a time. What a row gives does not depend on its neighbours.
template <class T, class Value, class Emit>
inline void sparsemax_range(int64_t begin, int64_t end, int64_t n, const Value& value, const Emit& emit) {
  const bool is_long = n >= kLongRow;
  T* z = new T[static_cast<size_t>(is_long ? long_row_scratch<T>(n) : kRowsAtOnce * padded<T>(n))];
  int64_t i = begin;
  if (is_long)
    for (; i < end; ++i) sparsemax_long_row(i, n, z, value, emit);
  for (; i + kRowsAtOnce <= end; i += kRowsAtOnce) sparsemax_rows<kRowsAtOnce>(i, n, z, value, emit);
  for (; i < end; ++i) sparsemax_rows<1>(i, n, z, value, emit);
  delete[] z;
}

}  // namespace
}  // namespace ak::AK_ISA
