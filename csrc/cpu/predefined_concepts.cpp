// Predefined concepts as sums over lists: a stock belongs to a few concepts in a hundred, so that the products with zeros are left out;
// a list of everybody costs little more than the product would, since a sum stays in registers while its list passes.
#include "predefined_concepts.h"

#include "cosine.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kConcepts = 16;  // whose lists are made at once: a cache line of each row of membership
constexpr int64_t kAhead = 16;     // rows of membership that are on their way: too far apart for the processor to foresee them

// y = start + sum_m weight[m] x[row[m]], every column through the list in order.
template <class T, int vectors, class P = Vec<T>>
inline void sum_columns(const int32_t* row, const T* weight, int64_t count, const T* x, int64_t hidden, const T* start, T* y, int64_t j) {
  P sum[vectors];
  for (int v = 0; v < vectors; ++v) sum[v] = load<P>(start + j + v * kWidth<P, T>);
  for (int64_t m = 0; m < count; ++m) {
    const T* from = x + row[m] * hidden + j;
    for (int v = 0; v < vectors; ++v) sum[v] += weight[m] * load<P>(from + v * kWidth<P, T>);
  }
  for (int v = 0; v < vectors; ++v) store(y + j + v * kWidth<P, T>, sum[v]);
}

template <class T>
inline void sum_rows(const int32_t* row, const T* weight, int64_t count, const T* x, int64_t hidden, const T* start, T* y) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t j = 0;
  for (; j + 4 * lanes <= hidden; j += 4 * lanes) sum_columns<T, 4>(row, weight, count, x, hidden, start, y, j);
  for (; j + lanes <= hidden; j += lanes) sum_columns<T, 1>(row, weight, count, x, hidden, start, y, j);
  for (; j < hidden; ++j) sum_columns<T, 1, T>(row, weight, count, x, hidden, start, y, j);
}

// Zeros, and NaN in the columns in which a row is not finite: where a product with the zeros of membership would have brought it.
template <class T>
void products_with_zero(const T* x, int64_t rows, int64_t hidden, T* sum) {
  std::fill_n(sum, hidden, T{0});
  for (int64_t i = 0; i < rows; ++i) add_scaled<T>(0, x + i * hidden, sum, hidden);
}

template <class T>
struct Membership {
  const T* data;
  const int64_t* rows;
  int64_t concepts;
  const T* of(int64_t stock) const { return data + (rows == nullptr ? stock : rows[stock]) * concepts; }
};

// The concepts [k0, k0 + n) of the day's stocks [begin, end).
template <class T>
void sum_stocks(const T* x, const Membership<T>& member, int64_t begin, int64_t end, int64_t hidden, int64_t k0, int64_t n,
                const T* start, int32_t* row, T* weight, T* out, T* size) {
  const int64_t stocks = end - begin;
  T sum[kConcepts] = {};
  int64_t count[kConcepts] = {};
  for (int64_t i = 0; i < stocks; ++i) {
    const T* w = member.of(begin + i) + k0;
    __builtin_prefetch(member.of(std::min(begin + i + kAhead, end - 1)) + k0);
    each_nonzero<T>(w, n, [&](int64_t k) {
      const int64_t at = k * stocks + count[k]++;
      sum[k] += w[k];
      row[at] = static_cast<int32_t>(i);
      weight[at] = w[k];
    });
  }
  for (int64_t k = 0; k < n; ++k) {
    T* w = weight + k * stocks;
    for (int64_t m = 0; m < count[k]; ++m) w[m] /= sum[k] * w[m] + 1;
    sum_rows<T>(row + k * stocks, w, count[k], x + begin * hidden, hidden, start, out + (k0 + k) * hidden);
    size[k0 + k] = sum[k];
  }
}

}  // namespace

template <class T>
void predefined_concepts(const T* x, const T* membership, const int64_t* offsets, const int64_t* rows, int64_t days, int64_t concepts,
                         int64_t hidden, T* out, T* size) {
  const Membership<T> member{membership, rows, concepts};
  for_each_day(days, [&](int64_t day) {
    const int64_t begin = offsets[day], end = offsets[day + 1];
    const Scratch<T> start(hidden);
    products_with_zero<T>(x + begin * hidden, end - begin, hidden, start);
    parallel_for((concepts + kConcepts - 1) / kConcepts, 1, [&](int64_t from, int64_t to) {
      Scratch<int32_t> row(kConcepts * (end - begin));
      Scratch<T> weight(kConcepts * (end - begin));
      for (int64_t k = from * kConcepts; k < std::min(concepts, to * kConcepts); k += kConcepts)
        sum_stocks<T>(x, member, begin, end, hidden, k, std::min(kConcepts, concepts - k), start, row, weight,
                      out + day * concepts * hidden, size + day * concepts);
    });
  });
}

template <class T>
void predefined_concepts_backward(const T* grad, const T* membership, const int64_t* offsets, const int64_t* rows, int64_t days,
                                  int64_t concepts, int64_t hidden, const T* size, T* dx) {
  const Membership<T> member{membership, rows, concepts};
  for_each_day(days, [&](int64_t day) {
    const T *from_grad = grad + day * concepts * hidden, *sizes = size + day * concepts;
    const Scratch<T> start(hidden);
    products_with_zero<T>(from_grad, concepts, hidden, start);
    const int64_t first = offsets[day];
    parallel_for(offsets[day + 1] - first, 8, [&](int64_t begin, int64_t end) {
      Scratch<int32_t> row(concepts);
      Scratch<T> weight(concepts);
      for (int64_t i = first + begin; i < first + end; ++i) {
        const T* w = member.of(i);
        int64_t count = 0;
        each_nonzero<T>(w, concepts, [&](int64_t k) {
          row[count] = static_cast<int32_t>(k);
          weight[count++] = w[k] / (sizes[k] * w[k] + 1);
        });
        sum_rows<T>(row, weight, count, from_grad, hidden, start, dx + i * hidden);
      }
    });
  });
}

#define AK_INSTANTIATE(T)                                                                                                            \
  template void predefined_concepts<T>(const T*, const T*, const int64_t*, const int64_t*, int64_t, int64_t, int64_t, T*, T*);       \
  template void predefined_concepts_backward<T>(const T*, const T*, const int64_t*, const int64_t*, int64_t, int64_t, int64_t, const T*, \
                                                T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
