// Concept attention: similarities of a tile of stocks and a tile of concepts, their exponentials and the product with the concepts, one
// tile after the other; a cosine is at most one, so that no maximum need be subtracted.
#include "concept_attention.h"

#include <vector>

#include "cosine.h"

namespace ak::AK_ISA {
namespace {

// The concepts of a day that take part, packed for both products.
template <class T>
struct Concepts {
  std::vector<int64_t> row;  // of c
  int64_t count, hidden;
  Scratch<T> values, norm, across, along;  // [count, H], [count], packed [H, count], packed [count, H] a column tile at a time

  Concepts(const T* c, int64_t begin, int64_t end, int64_t hidden)
      : row(taking_part(c, begin, end, hidden)), count(static_cast<int64_t>(row.size())), hidden(hidden), values(count * hidden),
        norm(count), across(packed_size<T>(hidden, count)), along(round_up(count, kColumnTile) * round_up(hidden, kPanel<T>)) {
    for (int64_t j = 0; j < count; ++j) std::copy_n(c + row[j] * hidden, hidden, values + j * hidden);
    row_norms<T>(values, count, hidden, norm);
    pack_transposed<T>(values, hidden, hidden, count, across);
    for (int64_t j = 0; j < count; j += kColumnTile) pack<T>(values + j * hidden, hidden, size(j), hidden, tile_along(j));
  }
  static std::vector<int64_t> taking_part(const T* c, int64_t begin, int64_t end, int64_t hidden) {
    std::vector<int64_t> rows;
    for (int64_t j = begin; j < end; ++j) {
      T sum = 0;
      for (int64_t k = 0; k < hidden; ++k) sum += c[j * hidden + k];
      if (sum != 0) rows.push_back(j);
    }
    return rows;
  }
  int64_t size(int64_t j) const { return std::min(kColumnTile, count - j); }
  const T* tile_across(int64_t j) const { return across + j * hidden; }
  T* tile_along(int64_t j) const { return along + j * round_up(hidden, kPanel<T>); }
};

template <class T>
void forward_tile(const T* x, int64_t rows, const Concepts<T>& concepts, T* similarity, T* out, T* total) {
  const int64_t hidden = concepts.hidden;
  T norm[kRowTile];
  row_norms(x, rows, hidden, norm);
  std::fill_n(total, rows, T{0});
  if (concepts.count == 0) std::fill_n(out, rows * hidden, T{0});
  for (int64_t j0 = 0; j0 < concepts.count; j0 += kColumnTile) {
    const int64_t n = concepts.size(j0);
    multiply<T>(rows, n, hidden, {x, hidden, 1}, concepts.tile_across(j0), similarity, kColumnTile);
    for (int64_t i = 0; i < rows; ++i) {
      T* s = similarity + i * kColumnTile;
      const T* c = concepts.norm + j0;
      Vec<T> sums = {};
      T rest = 0;
      each_column_once<T>(n, [&](auto pack, int64_t j) {
        using P = decltype(pack);
        const P weight = exp<P, T>(load<P>(s + j) / (norm[i] * load<P>(c + j) + kCosineEps<T>));
        store(s + j, weight);
        if constexpr (sizeof(P) == sizeof(T))
          rest += weight;
        else
          sums += weight;
      });
      total[i] += sum_lanes<T>(sums) + rest;
    }
    multiply<T>(rows, hidden, n, {similarity, kColumnTile, 1}, concepts.tile_along(j0), out, hidden, j0 > 0);
  }
  for (int64_t i = 0; i < rows && concepts.count > 0; ++i) {
    const T reciprocal = 1 / total[i];
    each_column_once<T>(hidden, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      store(out + i * hidden + j, static_cast<P>(load<P>(out + i * hidden + j) * reciprocal));
    });
  }
}

// Memory of one task of the backward pass.
template <class T>
struct Workspace {
  Scratch<T> similarity, gradient, both, pair;
  explicit Workspace(int64_t hidden)
      : similarity(kRowTile * kColumnTile), gradient(kRowTile * kColumnTile), both(2 * kRowTile * kColumnTile),
        pair(packed_size<T>(2 * kRowTile, hidden)) {}
};

// Gradients of a tile of stocks: dx, and what it adds to those of the concepts and of their norms.
template <class T>
void backward_tile(const T* grad, const T* x, const T* out, const T* total, int64_t rows, const Concepts<T>& concepts,
                   const Workspace<T>& work, T* dx, T* dc, T* dnorm) {
  const int64_t hidden = concepts.hidden;
  T norm[kRowTile], towards[kRowTile], dx_norm[kRowTile] = {};
  row_norms(x, rows, hidden, norm);
  for (int64_t i = 0; i < rows; ++i) towards[i] = row_dot(grad + i * hidden, out + i * hidden, hidden);
  pack_panels<T>(2 * rows, hidden, work.pair,
                 [&](int64_t k, int64_t j) { return k < rows ? x[k * hidden + j] : grad[(k - rows) * hidden + j]; });
  std::fill_n(dx, rows * hidden, T{0});
  for (int64_t j0 = 0; j0 < concepts.count; j0 += kColumnTile) {
    const int64_t n = concepts.size(j0);
    multiply<T>(rows, n, hidden, {x, hidden, 1}, concepts.tile_across(j0), work.similarity, kColumnTile);
    multiply<T>(rows, n, hidden, {grad, hidden, 1}, concepts.tile_across(j0), work.gradient, kColumnTile);
    for (int64_t i = 0; i < rows; ++i) {
      const T *s = work.similarity + i * kColumnTile, *g = work.gradient + i * kColumnTile, *c = concepts.norm + j0;
      T *d = work.both + i * kColumnTile, *p = work.both + (rows + i) * kColumnTile;
      const T reciprocal = 1 / total[i];
      Vec<T> sums = {};
      T rest = 0;
      each_column_once<T>(n, [&](auto pack, int64_t j) {
        using P = decltype(pack);
        const P length = load<P>(c + j), r = 1 / (norm[i] * length + kCosineEps<T>);
        const P cosine = load<P>(s + j) * r;
        const P weight = exp<P, T>(cosine) * reciprocal;
        const P dproduct = weight * (load<P>(g + j) - towards[i]) * r;  // of x_i . c_j
        const P shrink = dproduct * cosine;                             // minus the gradient of |x_i| |c_j|
        store(p + j, weight);
        store(d + j, dproduct);
        store(dnorm + j0 + j, static_cast<P>(load<P>(dnorm + j0 + j) - shrink * norm[i]));
        if constexpr (sizeof(P) == sizeof(T))
          rest += shrink * length;
        else
          sums += shrink * length;
      });
      dx_norm[i] -= sum_lanes<T>(sums) + rest;
    }
    multiply<T>(rows, hidden, n, {work.both, kColumnTile, 1}, concepts.tile_along(j0), dx, hidden, true);
    multiply<T>(n, hidden, 2 * rows, {work.both, 1, kColumnTile}, work.pair, dc + j0 * hidden, hidden, true);
  }
  for (int64_t i = 0; i < rows; ++i)
    if (norm[i] != 0) add_scaled(dx_norm[i] / norm[i], x + i * hidden, dx + i * hidden, hidden);
}

}  // namespace

template <class T>
void concept_attention(const T* x, const T* c, const int64_t* offsets, const int64_t* concept_offsets, int64_t days, int64_t hidden,
                       T* out, T* total) {
  for_each_day(days, [&](int64_t day) {
    const Concepts<T> concepts(c, concept_offsets[day], concept_offsets[day + 1], hidden);
    const int64_t at = offsets[day], rows = offsets[day + 1] - at;
    parallel_for((rows + kRowTile - 1) / kRowTile, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> similarity(kRowTile * kColumnTile);
      for (int64_t i = begin * kRowTile; i < std::min(rows, end * kRowTile); i += kRowTile)
        forward_tile<T>(x + (at + i) * hidden, std::min<int64_t>(kRowTile, rows - i), concepts, similarity, out + (at + i) * hidden,
                        total + at + i);
    });
  });
}

template <class T>
void concept_attention_backward(const T* grad, const T* x, const T* c, const int64_t* offsets, const int64_t* concept_offsets,
                                int64_t days, int64_t hidden, const T* out, const T* total, T* dx, T* dc) {
  for_each_day(days, [&](int64_t day) {
    const Concepts<T> concepts(c, concept_offsets[day], concept_offsets[day + 1], hidden);
    const int64_t at = offsets[day], rows = offsets[day + 1] - at, tiles = (rows + kRowTile - 1) / kRowTile;
    // The concepts' gradients are summed in groups of tiles, cut by the sizes alone, and the groups in order.
    const int64_t groups = std::clamp<int64_t>(tiles / 4, 1, 16), width = concepts.count * (hidden + 1);
    Scratch<T> parts(groups * width);
    parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      const Workspace<T> work(hidden);
      for (int64_t g = begin; g < end; ++g) {
        T* part = parts + g * width;
        std::fill_n(part, width, T{0});
        const int64_t stop = std::min(rows, (g + 1) * tiles / groups * kRowTile);
        for (int64_t i = g * tiles / groups * kRowTile; i < stop; i += kRowTile)
          backward_tile<T>(grad + (at + i) * hidden, x + (at + i) * hidden, out + (at + i) * hidden, total + at + i,
                           std::min<int64_t>(kRowTile, rows - i), concepts, work, dx + (at + i) * hidden, part,
                           part + concepts.count * hidden);
      }
    });
    std::fill(dc + concept_offsets[day] * hidden, dc + concept_offsets[day + 1] * hidden, T{0});
    parallel_for(concepts.count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        T* row = dc + concepts.row[j] * hidden;
        T dnorm = 0;
        for (int64_t g = 0; g < groups; ++g) {
          add_scaled<T>(1, parts + g * width + j * hidden, row, hidden);
          dnorm += parts[g * width + concepts.count * hidden + j];
        }
        if (concepts.norm[j] != 0) add_scaled<T>(dnorm / concepts.norm[j], concepts.values + j * hidden, row, hidden);
      }
    });
  });
}

#define AK_INSTANTIATE(T)                                                                                                     \
  template void concept_attention<T>(const T*, const T*, const int64_t*, const int64_t*, int64_t, int64_t, T*, T*);           \
  template void concept_attention_backward<T>(const T*, const T*, const T*, const int64_t*, const int64_t*, int64_t, int64_t, \
                                              const T*, const T*, T*, T*);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
