// Complete-graph attention. leaky_relu has two slopes, so the neighbours of i split by t alone: with t sorted, two weighted sums, over
// the k_i largest t and over the others, make its output. The backward pass is the same with s and t exchanged.
#include "complete_graph_attention.h"

#include <cmath>
#include <limits>

#include "../common/radix_sort.h"
#include "sorted_sums.h"

namespace ak::AK_ISA {
namespace {

// k[q] = how many scores of a day exceed -query, where both are sorted falling.
template <class T>
void count_positive(const T* score, const int32_t* order, const T* query, const int32_t* query_order, int64_t n, int32_t* k) {
  int64_t p = n;
  for (int64_t q = 0; q < n; ++q) {
    const T threshold = -query[query_order[q]];
    if (threshold == threshold)  // a NaN's row is NaN whatever its k
      while (p > 0 && !(score[order[p - 1]] > threshold)) --p;
    k[q] = static_cast<int32_t>(p);
  }
}

// e[p] = exp(e[p]).
inline void exponentials(double* e, int64_t n) {
  each_column_once<double>(n, [&](auto pack, int64_t p) {
    using P = decltype(pack);
    store(e + p, exp<P, double>(load<P>(e + p)));
  });
}

// The largest t of a day, or NaN where the softmax has no value: t holds a NaN or +inf, or is -inf throughout.
template <class T>
double largest_of(const T* t, const int32_t* order, int64_t begin, int64_t n) {
  const T largest = t[order[begin]];
  bool whole = std::isfinite(largest);
  for (int64_t i = begin; i < begin + n; ++i) whole &= t[i] == t[i];
  return whole ? largest : std::numeric_limits<double>::quiet_NaN();
}

// exp(t_j - t*) and exp(negative_slope (t_j - t*)) of a day's stocks by falling t.
template <class T>
void weigh_neighbours(const T* t, const int32_t* order, int64_t n, double largest, double negative_slope, double* steep, double* flat) {
  for (int64_t p = 0; p < n; ++p) {
    steep[p] = t[order[p]] - largest;
    flat[p] = negative_slope * steep[p];
  }
  exponentials(steep, n);
  exponentials(flat, n);
}

// What turns the two sums of row i into its output, 1 / Z_i and c_i / Z_i, and the weight of its first sum: by falling s.
template <class T>
void weigh_rows(const T* s, const int32_t* by_s, const double* steep, const double* flat, const int32_t* k, int64_t n, double largest,
                double negative_slope, double* first, double* last, double* share) {
  Scratch<double> head(n + 1), tail(n + 1);
  head[0] = tail[n] = 0;
  for (int64_t p = 0; p < n; ++p) head[p + 1] = head[p] + steep[p];
  for (int64_t p = n; p > 0; --p) tail[p - 1] = tail[p] + flat[p - 1];
  for (int64_t q = 0; q < n; ++q) {
    const double x = s[by_s[q]] + largest;
    last[q] = x > 0 ? (negative_slope - 1) * x : 0.0;  // log c_i
  }
  exponentials(last, n);
  for (int64_t q = 0; q < n; ++q) {
    const double positive = k[q] > 0 ? head[k[q]] : 0.0, others = last[q] * tail[k[q]];
    first[q] = std::isfinite(s[by_s[q]] + largest) ? 1 / (positive + others) : std::numeric_limits<double>::quiet_NaN();
    last[q] *= first[q];
    share[q] = positive * first[q];
  }
}

}  // namespace

template <class T>
void complete_graph_attention(const T* s, const T* t, const T* h, const int64_t* offsets, int64_t days, int64_t rows, int64_t hidden,
                              double negative_slope, T* out, T* slope, double* scale, int32_t* order) {
  const DayBlocks blocks(offsets, days);
  int32_t *by_s = order, *by_t = order + rows;
  double *first = scale, *last = scale + rows;
  parallel_for(2 * days, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = blocks.begin(i / 2);
      sort_descending((i % 2 ? t : s) + at, blocks.size(i / 2), static_cast<int32_t>(at), (i % 2 ? by_t : by_s) + at);
    }
  });
  Scratch<double> steep(rows), flat(rows), share(rows);
  Scratch<int32_t> k(rows);
  parallel_for(days, 1, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      const int64_t at = blocks.begin(d), n = blocks.size(d);
      if (n == 0) continue;
      const double largest = largest_of(t, by_t, at, n);
      weigh_neighbours(t, by_t + at, n, largest, negative_slope, steep + at, flat + at);
      count_positive(t, by_t + at, s, by_s + at, n, k + at);
      weigh_rows(s, by_s + at, steep + at, flat + at, k + at, n, largest, negative_slope, first + at, last + at, share + at);
    }
  });
  const SortedSums<T> sums(blocks, h, hidden, by_t, steep, flat);
  parallel_for(blocks.count(), std::max<int64_t>(1, 8192 / (kBlock * hidden + 1)), [&](int64_t begin, int64_t end) {
    Scratch<double> positive(kBlock * hidden);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t day = blocks.day_of(b), at = blocks.begin(day), from = (b - blocks.first[day]) * kBlock;
      for_each_strip(hidden, [&](auto pack, auto packs, int64_t j) {
        using P = decltype(pack);
        constexpr int n = decltype(packs)::value;
        constexpr int64_t w = kWidth<P, double>;
        sums.template walk<P, n>(
            day, k + at, from, std::min(blocks.size(day), from + kBlock), j,
            [&](int64_t q, const P* sum) {
              for (int v = 0; v < n; ++v) store(positive + (q - from) * hidden + j + v * w, static_cast<P>(sum[v] * first[at + q]));
            },
            [&](int64_t q, const P* sum) {
              const int64_t row = by_s[at + q] * hidden + j;
              // d out_i / d s_i = (1 - slope) p+ p- (mean of the first - mean of the others): zero where one side is empty.
              const double p = share[at + q], a = (1 - negative_slope) * (1 - p), c = (1 - negative_slope) * p;
              for (int v = 0; v < n; ++v) {
                const P x = load<P>(positive + (q - from) * hidden + j + v * w), y = sum[v] * last[at + q];
                store_narrow<P>(out + row + v * w, x + y);
                if (slope != nullptr) store_narrow<P>(slope + row + v * w, a * x - c * y);
              }
            });
      });
    }
  });
}

template <class T>
void complete_graph_attention_backward(const T* grad, const T* s, const T* t, const T* h, const int64_t* offsets, int64_t days,
                                       int64_t rows, int64_t hidden, double negative_slope, const T* out, const T* slope,
                                       const double* scale, const int32_t* order, T* ds, T* dt, T* dh) {
  const DayBlocks blocks(offsets, days);
  const int32_t *by_s = order, *by_t = order + rows;
  const double *first = scale, *last = scale + rows;
  Scratch<double> towards(rows);  // g_i . out_i
  parallel_for(rows, std::max<int64_t>(1, 16384 / (hidden + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      towards[i] = wide_dot(grad + i * hidden, out + i * hidden, hidden);
      ds[i] = static_cast<T>(wide_dot(grad + i * hidden, slope + i * hidden, hidden));
    }
  });
  // By falling t: the weights of the neighbour, and the sums of towards_i that go with them.
  Scratch<double> steep(rows), flat(rows), head(rows), tail(rows);
  Scratch<int32_t> k(rows);
  parallel_for(days, 1, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      const int64_t at = blocks.begin(d), n = blocks.size(d);
      if (n == 0) continue;
      weigh_neighbours(t, by_t + at, n, largest_of(t, by_t, at, n), negative_slope, steep + at, flat + at);
      count_positive(s, by_s + at, t, by_t + at, n, k + at);
      double sum = 0;
      for (int64_t q = n - 1, p = 0; q >= 0; --q) {
        for (; p < k[at + q]; ++p) sum += first[at + p] * towards[by_s[at + p]];
        head[at + q] = sum;
      }
      sum = 0;
      for (int64_t q = 0, p = n; q < n; ++q) {
        for (; p > k[at + q]; --p) sum += last[at + p - 1] * towards[by_s[at + p - 1]];
        tail[at + q] = sum;
      }
    }
  });
  const SortedSums<T> sums(blocks, grad, hidden, by_s, first, last);
  parallel_for(blocks.count(), std::max<int64_t>(1, 8192 / (kBlock * hidden + 1)), [&](int64_t begin, int64_t end) {
    Scratch<double> positive(kBlock * hidden);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t day = blocks.day_of(b), at = blocks.begin(day), from = (b - blocks.first[day]) * kBlock;
      const int64_t to = std::min(blocks.size(day), from + kBlock);
      double steep_dot[kBlock] = {}, flat_dot[kBlock] = {};
      for_each_strip(hidden, [&](auto pack, auto packs, int64_t j) {
        using P = decltype(pack);
        constexpr int n = decltype(packs)::value;
        constexpr int64_t w = kWidth<P, double>;
        const auto dot = [&](const P* sum, const T* row) {
          P total = {};
          for (int v = 0; v < n; ++v) total += sum[v] * load_wide<P>(row + v * w);
          if constexpr (w == 1)
            return total;
          else
            return sum_lanes<double>(total);
        };
        sums.template walk<P, n>(
            day, k + at, from, to, j,
            [&](int64_t q, const P* sum) {
              steep_dot[q - from] += dot(sum, h + by_t[at + q] * hidden + j);
              for (int v = 0; v < n; ++v) store(positive + (q - from) * hidden + j + v * w, static_cast<P>(steep[at + q] * sum[v]));
            },
            [&](int64_t q, const P* sum) {
              const int64_t row = by_t[at + q] * hidden + j;
              flat_dot[q - from] += dot(sum, h + row);
              for (int v = 0; v < n; ++v)
                store_narrow<P>(dh + row + v * w, load<P>(positive + (q - from) * hidden + j + v * w) + flat[at + q] * sum[v]);
            });
      });
      for (int64_t q = from; q < to; ++q)
        dt[by_t[at + q]] = static_cast<T>(steep[at + q] * (steep_dot[q - from] - head[at + q]) +
                                          negative_slope * flat[at + q] * (flat_dot[q - from] - tail[at + q]));
    }
  });
}

#define AK_INSTANTIATE(T)                                                                                                        \
  template void complete_graph_attention<T>(const T*, const T*, const T*, const int64_t*, int64_t, int64_t, int64_t, double, T*, \
                                            T*, double*, int32_t*);                                                              \
  template void complete_graph_attention_backward<T>(const T*, const T*, const T*, const T*, const int64_t*, int64_t, int64_t,   \
                                                     int64_t, double, const T*, const T*, const double*, const int32_t*, T*, T*, \
                                                     T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
