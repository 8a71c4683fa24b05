// Hidden concepts: the similarities of a tile of stocks with all others come and go in cache; one index and one value a stock remain.
#include "hidden_concepts.h"

#include <limits>
#include <vector>

#include "cosine.h"

namespace ak::AK_ISA {
namespace {

// Who chose whom: the rows that chose j, in order, at member[first[j]] to member[first[j + 1]]. All by place in the day.
struct Members {
  std::vector<int32_t> first, member;

  Members(const int32_t* choice, int64_t begin, int64_t n) : first(n + 1, 0), member(n) {
    for (int64_t i = 0; i < n; ++i)
      if (choice[i] >= 0) ++first[choice[i] - begin + 1];
    for (int64_t j = 0; j < n; ++j) first[j + 1] += first[j];
    std::vector<int32_t> next(first.begin(), first.end() - 1);
    for (int64_t i = 0; i < n; ++i)
      if (choice[i] >= 0) member[next[choice[i] - begin]++] = static_cast<int32_t>(i);
  }
};

// The most similar other stock of each row of a tile, the first where there are equals; none where no similarity is positive.
template <class T>
void choose(const T* x, int64_t i0, int64_t rows, int64_t n, int64_t hidden, const T* packed, const T* norm, T* similarity,
            int64_t begin, T* value, int32_t* choice) {
  using Index = typename Bits<T>::Int;
  using Indices = typename IntPack<Vec<T>, T>::type;
  constexpr int64_t lanes = kLanes<T>;
  constexpr T low = -std::numeric_limits<T>::infinity();
  Vec<T> best[kRowTile];
  Indices where[kRowTile], lane;
  for (int64_t l = 0; l < lanes; ++l) lane[l] = static_cast<Index>(l);
  for (int64_t i = 0; i < rows; ++i) best[i] = splat<Vec<T>>(low), where[i] = Indices{};
  for (int64_t j0 = 0; j0 < n; j0 += kColumnTile) {
    const int64_t columns = std::min(kColumnTile, n - j0);
    multiply<T>(rows, columns, hidden, {x + i0 * hidden, hidden, 1}, packed + j0 * hidden, similarity, kColumnTile);
    for (int64_t i = 0; i < rows; ++i) {
      T* s = similarity + i * kColumnTile;
      const int64_t own = i0 + i - j0;
      if (own >= 0 && own < columns) s[own] = 0;
      for (int64_t j = columns; j < round_up(columns, lanes); ++j) s[j] = low;
      for (int64_t j = 0; j < columns; j += lanes) {  // the norms are padded with ones
        const Vec<T> cosine = load<Vec<T>>(s + j) / (norm[i0 + i] * load<Vec<T>>(norm + j0 + j) + kCosineEps<T>);
        const Indices at = lane + static_cast<Index>(j0 + j);
        where[i] = cosine > best[i] ? at : where[i];
        best[i] = maximum(cosine, best[i]);
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    T most = low;
    Index at = 0;
    for (int64_t l = 0; l < lanes; ++l)
      if (best[i][l] > most || (best[i][l] == most && where[i][l] < at)) most = best[i][l], at = where[i][l];
    value[i0 + i] = most > 0 ? most : T{0};
    choice[i0 + i] = most > 0 ? static_cast<int32_t>(begin + at) : -1;
  }
}

template <class T>
bool all_finite(const T* x, int64_t n) {
  return !(sum_packs<T>(n, [&](auto pack, int64_t j) {
             using P = decltype(pack);
             return static_cast<P>(load<P>(x + j) * T{0});
           }) != 0);
}

// The similarity of a stock with itself, which is one but for the 1e-6.
template <class T>
T with_itself(T norm) {
  return norm * norm / (norm * norm + kCosineEps<T>);
}

}  // namespace

template <class T>
void hidden_concepts(const T* x_all, const int64_t* offsets, int64_t days, int64_t hidden, T* concepts_all, T* value_all,
                     int32_t* choice_all) {
  for_each_day(days, [&](int64_t day) {
    const int64_t begin = offsets[day], n = offsets[day + 1] - begin;
    const T* x = x_all + begin * hidden;
    T *concepts = concepts_all + begin * hidden, *value = value_all + begin;
    int32_t* choice = choice_all + begin;
    if (!all_finite(x, n * hidden)) {
      constexpr T nan = std::numeric_limits<T>::quiet_NaN();
      std::fill_n(concepts, n * hidden, nan);
      std::fill_n(value, n, nan);
      std::fill_n(choice, n, static_cast<int32_t>(begin));
      return;
    }
    Scratch<T> packed(packed_size<T>(hidden, n)), norm(n + kLanes<T>);
    pack_with_norms<T>(x, n, hidden, packed, norm);
    std::fill_n(norm + n, kLanes<T>, T{1});
    parallel_for(n, kTileRows, [&](int64_t from, int64_t to) {
      const Scratch<T> similarity(kRowTile * kColumnTile);
      each_tile(from, to, [&](int64_t i, int64_t rows) {
        choose<T>(x, i, rows, n, hidden, packed, norm, similarity, begin, value, choice);
      });
    });
    const Members members(choice, begin, n);
    for (int64_t j = 0; j < n; ++j) {
      T* row = concepts + j * hidden;
      std::fill_n(row, hidden, T{0});
      for (int32_t m = members.first[j]; m < members.first[j + 1]; ++m)
        add_scaled(value[members.member[m]], x + members.member[m] * hidden, row, hidden);
      if (members.first[j] < members.first[j + 1]) add_scaled(with_itself(norm[j]), x + j * hidden, row, hidden);
    }
  });
}

template <class T>
void hidden_concepts_backward(const T* grad_all, const T* x_all, const int64_t* offsets, int64_t days, int64_t hidden,
                              const T* value_all, const int32_t* choice_all, T* dx_all) {
  for_each_day(days, [&](int64_t day) {
    const int64_t begin = offsets[day], n = offsets[day + 1] - begin;
    const T *x = x_all + begin * hidden, *grad = grad_all + begin * hidden, *value = value_all + begin;
    const int32_t* choice = choice_all + begin;
    const Members members(choice, begin, n);
    Scratch<T> norm(n), dproduct(n);
    row_norms(x, n, hidden, static_cast<T*>(norm));
    // Of x_i . x_c, c the choice of i.
    for (int64_t i = 0; i < n; ++i) {
      const int64_t c = choice[i] - begin;
      dproduct[i] = choice[i] < 0 ? T{0} : row_dot(x + i * hidden, grad + c * hidden, hidden) / (norm[i] * norm[c] + kCosineEps<T>);
    }
    parallel_for(n, 64, [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j) {
        T* row = dx_all + (begin + j) * hidden;
        std::fill_n(row, hidden, T{0});
        T dnorm = 0;
        if (choice[j] >= 0) {
          const int64_t c = choice[j] - begin;
          add_scaled(value[j], grad + c * hidden, row, hidden);
          add_scaled(dproduct[j], x + c * hidden, row, hidden);
          dnorm -= dproduct[j] * value[j] * norm[c];
        }
        for (int32_t m = members.first[j]; m < members.first[j + 1]; ++m) {
          const int64_t i = members.member[m];
          add_scaled(dproduct[i], x + i * hidden, row, hidden);
          dnorm -= dproduct[i] * value[i] * norm[i];
        }
        if (members.first[j] < members.first[j + 1]) {
          const T square = norm[j] * norm[j] + kCosineEps<T>;
          add_scaled(with_itself(norm[j]), grad + j * hidden, row, hidden);
          dnorm += row_dot(x + j * hidden, grad + j * hidden, hidden) * 2 * norm[j] * kCosineEps<T> / (square * square);
        }
        if (norm[j] != 0) add_scaled(dnorm / norm[j], x + j * hidden, row, hidden);
      }
    });
  });
}

#define AK_INSTANTIATE(T)                                                                                                        \
  template void hidden_concepts<T>(const T*, const int64_t*, int64_t, int64_t, T*, T*, int32_t*);                                \
  template void hidden_concepts_backward<T>(const T*, const T*, const int64_t*, int64_t, int64_t, const T*, const int32_t*, T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
