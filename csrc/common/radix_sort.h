// Rows sorted by a floating-point score, largest first: a stable radix sort of (key, row) pairs, digit by digit. Equal scores keep
// their order, so the result is one and the same however the work is cut; NaN goes to either end.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "gemm.h"

namespace ak::AK_ISA {
namespace {

template <class T>
struct SortedKey;
template <>
struct SortedKey<float> {
  using Unsigned = uint32_t;
};
template <>
struct SortedKey<double> {
  using Unsigned = uint64_t;
};

// An unsigned integer that grows as the score falls.
template <class T>
inline typename SortedKey<T>::Unsigned descending_key(T score) {
  using U = typename SortedKey<T>::Unsigned;
  constexpr U sign = U{1} << (8 * sizeof(U) - 1);
  U bits;
  score += T{0};  // -0 and 0 are equal
  std::memcpy(&bits, &score, sizeof(T));
  return bits & sign ? bits : ~(bits | sign);
}

// order[p] = first + the position in score[0, n) of the p-th largest.
template <class T>
inline void sort_descending(const T* score, int64_t n, int32_t first, int32_t* order) {
  using U = typename SortedKey<T>::Unsigned;
  struct Item {
    U key;
    int32_t row;
  };
  constexpr int digits = sizeof(U);
  Scratch<Item> from_memory(n), to_memory(n);
  Item *from = from_memory, *to = to_memory;
  int64_t count[digits][256] = {};
  for (int64_t i = 0; i < n; ++i) {
    const U key = descending_key(score[i]);
    from[i] = {key, static_cast<int32_t>(first + i)};
    for (int d = 0; d < digits; ++d) ++count[d][(key >> (8 * d)) & 255];
  }
  for (int d = 0; d < digits; ++d) {
    if (n > 0 && count[d][(from[0].key >> (8 * d)) & 255] == n) continue;  // a digit that all keys share sorts nothing
    int64_t start = 0;
    for (int64_t& c : count[d]) {
      const int64_t here = c;
      c = start;
      start += here;
    }
    for (int64_t i = 0; i < n; ++i) to[count[d][(from[i].key >> (8 * d)) & 255]++] = from[i];
    std::swap(from, to);
  }
  for (int64_t p = 0; p < n; ++p) order[p] = from[p].row;
}

}  // namespace
}  // namespace ak::AK_ISA
