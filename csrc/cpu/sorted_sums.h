// Weighted sums of the first k and of the last n - k rows of a sorted list, for many k at once.
//
// The list is cut into blocks of kBlock rows at fixed places; the sums before and after each block are carried, and a task walks the
// rest in registers. A sum is carry + the rows of k's own block in order, whoever computes it: the same bits for any number of threads.
// Nothing is ever subtracted. Sums are of doubles whatever the rows are: the gradients are differences of them that cancel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/gemm.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kBlock = 64;  // rows of a block, and queries of a task

// How days are cut into blocks; block `first[d] + b` holds places [b kBlock, (b + 1) kBlock) of day d.
struct DayBlocks {
  const int64_t* offsets;
  int64_t days;
  std::vector<int64_t> first;

  DayBlocks(const int64_t* offsets, int64_t days) : offsets(offsets), days(days), first(days + 1, 0) {
    for (int64_t d = 0; d < days; ++d) first[d + 1] = first[d] + (size(d) + kBlock - 1) / kBlock;
  }
  int64_t begin(int64_t day) const { return offsets[day]; }
  int64_t size(int64_t day) const { return offsets[day + 1] - offsets[day]; }
  int64_t count() const { return first[days]; }
  int64_t day_of(int64_t block) const { return std::upper_bound(first.begin(), first.end(), block) - first.begin() - 1; }
  // Where a day's carries lie: one for each block, one for the end, one beyond it.
  int64_t carry(int64_t day) const { return first[day] + 2 * day; }
  int64_t carries() const { return first[days] + 2 * days; }
};

// Packs of doubles from and to rows of T.
template <class P, class T>
inline P load_wide(const T* p) {
  if constexpr (sizeof(T) == sizeof(double))
    return load<P>(p);
  else if constexpr (sizeof(P) == sizeof(double))
    return static_cast<P>(*p);
  else
    return __builtin_convertvector((load<typename Register<T, sizeof(P) / 2>::type>(p)), P);
}
template <class P, class T>
inline void store_narrow(T* p, P v) {
  if constexpr (sizeof(T) == sizeof(double))
    store(p, v);
  else if constexpr (sizeof(P) == sizeof(double))
    *p = static_cast<T>(v);
  else
    store(p, __builtin_convertvector(v, typename Register<T, sizeof(P) / 2>::type));
}

// f(Pack{}, std::integral_constant<int, packs>, column): columns [0, n) in strips of packs of doubles that stay in registers.
template <class F>
inline void for_each_strip(int64_t n, const F& f) {
  constexpr int64_t lanes = kLanes<double>, wide = kRegisterBytes == 64 ? 8 : 4;
  int64_t j = 0;
  for (; j + wide * lanes <= n; j += wide * lanes) f(Vec<double>{}, std::integral_constant<int, wide>{}, j);
  for (; j + lanes <= n; j += lanes) f(Vec<double>{}, std::integral_constant<int, 1>{}, j);
  for (; j < n; ++j) f(double{}, std::integral_constant<int, 1>{}, j);
}

template <class T>
inline double wide_dot(const T* a, const T* b, int64_t n) {
  Vec<double> total = {};
  double rest = 0;
  int64_t j = 0;
  for (; j + kLanes<double> <= n; j += kLanes<double>) total += load_wide<Vec<double>>(a + j) * load_wide<Vec<double>>(b + j);
  for (; j < n; ++j) rest += static_cast<double>(a[j]) * b[j];
  return sum_lanes<double>(total) + rest;
}

template <class T>
struct SortedSums {
  const DayBlocks& blocks;
  const T* rows;  // [N, width], in their own order
  int64_t width;
  const int32_t* order;           // [N]: rows[order[p]] is the p-th of its day
  const double *before, *after;   // [N]: weights of the sums of the first k and of the last n - k, by place
  Scratch<double> head, tail;     // carries: head[b] is the sum before block b, tail[b] the sum from block b on

  SortedSums(const DayBlocks& blocks, const T* rows, int64_t width, const int32_t* order, const double* before, const double* after)
      : blocks(blocks), rows(rows), width(width), order(order), before(before), after(after),
        head(blocks.carries() * width), tail(blocks.carries() * width) {
    parallel_for(blocks.count(), std::max<int64_t>(1, 16384 / (kBlock * width + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) sum_block(b);
    });
    for (int64_t d = 0; d < blocks.days; ++d) carry_on(d);
  }

  void sum_block(int64_t block) const {
    const int64_t day = blocks.day_of(block), b = block - blocks.first[day], at = blocks.begin(day);
    const int64_t from = at + b * kBlock, to = std::min(at + blocks.size(day), from + kBlock);
    double* h = head + (blocks.carry(day) + b) * width;
    double* t = tail + (blocks.carry(day) + b) * width;
    for_each_strip(width, [&](auto pack, auto packs, int64_t j) {
      using P = decltype(pack);
      constexpr int n = decltype(packs)::value;
      constexpr int64_t w = kWidth<P, double>;
      P x[n] = {}, y[n] = {};
      for (int64_t p = from; p < to; ++p) {
        const T* row = rows + order[p] * width + j;
        for (int v = 0; v < n; ++v) {
          const P value = load_wide<P>(row + v * w);
          x[v] += before[p] * value;
          y[v] += after[p] * value;
        }
      }
      for (int v = 0; v < n; ++v) {
        store(h + j + v * w, x[v]);
        store(t + j + v * w, y[v]);
      }
    });
  }

  // Turns the sums of a day's blocks into carries.
  void carry_on(int64_t day) const {
    const int64_t n = (blocks.size(day) + kBlock - 1) / kBlock;
    double* h = head + blocks.carry(day) * width;
    double* t = tail + blocks.carry(day) * width;
    std::fill_n(t + n * width, 2 * width, 0.0);
    for (int64_t b = n - 1; b >= 0; --b)
      for (int64_t j = 0; j < width; ++j) t[b * width + j] += t[(b + 1) * width + j];
    for (int64_t b = n; b > 0; --b) std::copy_n(h + (b - 1) * width, width, h + b * width);
    std::fill_n(h, width, 0.0);
    for (int64_t b = 1; b <= n; ++b)
      for (int64_t j = 0; j < width; ++j) h[b * width + j] += h[(b - 1) * width + j];
  }

  // For the queries q in [from, to) of a day, whose k[q] (rows of the day that count as first) fall as q rises: calls
  // first(q, sum of the first k) with q falling, then last(q, sum of the others) with q rising; sums are of columns [j, j + packs).
  template <class P, int packs, class First, class Last>
  void walk(int64_t day, const int32_t* k, int64_t from, int64_t to, int64_t j, const First& first, const Last& last) const {
    constexpr int64_t w = kWidth<P, double>;
    const int64_t at = blocks.begin(day), n = blocks.size(day);
    P sum[packs] = {};
    int64_t block = -1, place = 0;
    for (int64_t q = to - 1; q >= from; --q) {
      if (k[q] / kBlock != block) {
        block = k[q] / kBlock;
        place = block * kBlock;
        for (int v = 0; v < packs; ++v) sum[v] = load<P>(head + (blocks.carry(day) + block) * width + j + v * w);
      }
      for (; place < k[q]; ++place) {
        const T* row = rows + order[at + place] * width + j;
        for (int v = 0; v < packs; ++v) sum[v] += before[at + place] * load_wide<P>(row + v * w);
      }
      first(q, sum);
    }
    block = -1;
    for (int64_t q = from; q < to; ++q) {
      if (k[q] / kBlock != block) {
        block = k[q] / kBlock;
        place = std::min(n, (block + 1) * kBlock);
        for (int v = 0; v < packs; ++v) sum[v] = load<P>(tail + (blocks.carry(day) + block + 1) * width + j + v * w);
      }
      for (; place > k[q]; --place) {
        const T* row = rows + order[at + place - 1] * width + j;
        for (int v = 0; v < packs; ++v) sum[v] += after[at + place - 1] * load_wide<P>(row + v * w);
      }
      last(q, sum);
    }
  }
};

}  // namespace
}  // namespace ak::AK_ISA
