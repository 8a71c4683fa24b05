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
  bool all, whole;  // all take part; their rows are whole panels, and need no packing for the product along them
  Scratch<T> copy, norm, across, panels;  // [count, H], [count], packed [H, count], packed [count, H]
  const T* values;                        // [count, H]

  Concepts(const T* c, int64_t begin, int64_t end, int64_t hidden)
      : row(taking_part(c, begin, end, hidden)), count(static_cast<int64_t>(row.size())), hidden(hidden), all(count == end - begin),
        whole(hidden % kPanel<T> == 0), copy(all ? 0 : count * hidden), norm(count), across(packed_size<T>(hidden, count)),
        panels(whole ? 0 : count * round_up(hidden, kPanel<T>)), values(all ? c + begin * hidden : copy) {
    for (int64_t j = 0; j < count && !all; ++j) std::copy_n(c + row[j] * hidden, hidden, copy + j * hidden);
    for (int64_t j = 0; j < count && !whole; ++j) pack_row<kPanel<T>>(values + j * hidden, hidden, +panels, count, j);
    pack_with_norms<T>(values, count, hidden, across, norm);
  }
  static std::vector<int64_t> taking_part(const T* c, int64_t begin, int64_t end, int64_t hidden) {
    std::vector<char> part(end - begin);
    parallel_for(end - begin, 128, [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j) {
        const T* values = c + (begin + j) * hidden;
        part[j] = sum_packs<T>(hidden, [values](auto pack, int64_t k) { return load<decltype(pack)>(values + k); }) != 0;
      }
    });
    std::vector<int64_t> rows;
    rows.reserve(end - begin);
    for (int64_t j = begin; j < end; ++j)
      if (part[j - begin]) rows.push_back(j);
    return rows;
  }
  const T* tile_across(int64_t j) const { return across + j * hidden; }  // j a multiple of kPanel
  RightOperand<T> along(int64_t j) const {
    if (whole) return row_major<T>(values + j * hidden, hidden);
    return {panels + j * kPanel<T>, count, kPanel<T>};
  }
};

template <class T>
void forward_tile(const T* x, int64_t rows, const Concepts<T>& concepts, T* similarity, T* out, T* total) {
  const int64_t hidden = concepts.hidden;
  T norm[kRowTile];
  row_norms(x, rows, hidden, norm);
  std::fill_n(total, rows, T{0});
  if (concepts.count == 0) std::fill_n(out, rows * hidden, T{0});
  for (int64_t j0 = 0; j0 < concepts.count; j0 += kColumnTile) {
    const int64_t n = std::min(kColumnTile, concepts.count - j0);
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
    multiply<T>(rows, hidden, n, {similarity, kColumnTile, 1}, concepts.along(j0), out, hidden, j0 > 0);
  }
  for (int64_t i = 0; i < rows && concepts.count > 0; ++i) {
    const T reciprocal = 1 / total[i];
    each_column_once<T>(hidden, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      store(out + i * hidden + j, static_cast<P>(load<P>(out + i * hidden + j) * reciprocal));
    });
  }
}

// The stocks of a day with what the backward pass needs of them, in even tiles.
template <class T>
struct Stocks {
  const T *grad, *x, *total;  // [rows, H], [rows, H], [rows]
  int64_t rows, hidden, tiles, width;
  Scratch<T> norm, towards, panels;  // |x_i|, grad_i . out_i; a tile's rows of x and then of grad, packed [2 rows, H]

  Stocks(const T* grad, const T* x, const T* out, const T* total, int64_t rows, int64_t hidden, int64_t tiles)
      : grad(grad), x(x), total(total), rows(rows), hidden(hidden), tiles(tiles), width(round_up(hidden, kPanel<T>)), norm(rows),
        towards(rows), panels(2 * rows * width) {
    parallel_for(tiles, 1, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) {
        const Tile at = tile(t);
        T* packed = panels + 2 * at.begin * width;
        row_norms<T>(x + at.begin * hidden, at.size(), hidden, norm + at.begin);
        for (int64_t i = at.begin; i < at.end; ++i) {
          towards[i] = row_dot(grad + i * hidden, out + i * hidden, hidden);
          pack_row<kPanel<T>>(x + i * hidden, hidden, packed, 2 * at.size(), i - at.begin);
          pack_row<kPanel<T>>(grad + i * hidden, hidden, packed, 2 * at.size(), at.size() + i - at.begin);
        }
      }
    });
  }
  Tile tile(int64_t t) const { return {t, tiles, rows}; }
  const T* pair(const Tile& at) const { return panels + 2 * at.begin * width; }
};

// Gradients of rows and of their norms.
template <class T>
struct Gradients {
  T *rows, *norms;
};

// What the tiles [first, last) of stocks and the concepts [begin, end), begin a multiple of kPanel, give each other; dx and dc begin at the
// day's first stock and first concept.
template <class T>
void backward_block(const Stocks<T>& stocks, const Concepts<T>& concepts, int64_t first, int64_t last, int64_t begin, int64_t end,
                    Gradients<T> dx, Gradients<T> dc) {
  const int64_t hidden = concepts.hidden;
  constexpr int64_t most = kRowTile * kColumnTile;
  const Scratch<T> similarity(most), gradient(most), both(2 * most);
  std::fill(dc.norms + begin, dc.norms + end, T{0});
  for (int64_t t = first; t < last; ++t) {
    const Tile at = stocks.tile(t);
    const int64_t rows = at.size();
    const T *x = stocks.x + at.begin * hidden, *grad = stocks.grad + at.begin * hidden;
    std::fill(dx.norms + at.begin, dx.norms + at.end, T{0});
    for (int64_t j0 = begin; j0 < end; j0 += kColumnTile) {
      const int64_t n = std::min(kColumnTile, end - j0);
      multiply<T>(rows, n, hidden, {x, hidden, 1}, concepts.tile_across(j0), similarity, kColumnTile);
      multiply<T>(rows, n, hidden, {grad, hidden, 1}, concepts.tile_across(j0), gradient, kColumnTile);
      for (int64_t i = 0; i < rows; ++i) {
        const T *s = similarity + i * kColumnTile, *g = gradient + i * kColumnTile, *c = concepts.norm + j0;
        T *d = both + i * kColumnTile, *p = both + (rows + i) * kColumnTile, *dnorm = dc.norms + j0;
        const T norm = stocks.norm[at.begin + i], towards = stocks.towards[at.begin + i], reciprocal = 1 / stocks.total[at.begin + i];
        Vec<T> sums = {};
        T rest = 0;
        each_column_once<T>(n, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          const P length = load<P>(c + j), r = 1 / (norm * length + kCosineEps<T>);
          const P cosine = load<P>(s + j) * r;
          const P weight = exp<P, T>(cosine) * reciprocal;
          const P dproduct = weight * (load<P>(g + j) - towards) * r;  // of x_i . c_j
          const P shrink = dproduct * cosine;                          // minus the gradient of |x_i| |c_j|
          store(p + j, weight);
          store(d + j, dproduct);
          store(dnorm + j, static_cast<P>(load<P>(dnorm + j) - shrink * norm));
          if constexpr (sizeof(P) == sizeof(T))
            rest += shrink * length;
          else
            sums += shrink * length;
        });
        dx.norms[at.begin + i] -= sum_lanes<T>(sums) + rest;
      }
      multiply<T>(rows, hidden, n, {both, kColumnTile, 1}, concepts.along(j0), dx.rows + at.begin * hidden, hidden, j0 > begin);
      multiply<T>(n, hidden, 2 * rows, {both, 1, kColumnTile}, stocks.pair(at), dc.rows + j0 * hidden, hidden, t > first);
    }
  }
}

// The gradients of n rows in parts that are to be summed in order; the only part is where the sum goes, if it can be.
template <class T>
struct Parts {
  int64_t count, n, hidden;
  Scratch<T> own, norms;
  T* rows;

  Parts(int64_t count, int64_t n, int64_t hidden, T* whole)
      : count(count), n(n), hidden(hidden), own(whole != nullptr && count == 1 ? 0 : count * n * hidden), norms(count * n),
        rows(whole != nullptr && count == 1 ? whole : own) {}
  Gradients<T> operator[](int64_t part) const { return {rows + part * n * hidden, norms + part * n}; }

  // The sum of row i with what the gradient of |value| adds to it.
  void join(int64_t i, const T* value, T length, T* to) const {
    if (to != rows + i * hidden) std::copy_n(rows + i * hidden, hidden, to);
    T dnorm = norms[i];
    for (int64_t part = 1; part < count; ++part) {
      add_scaled<T>(1, rows + (part * n + i) * hidden, to, hidden);
      dnorm += norms[part * n + i];
    }
    if (length != 0) add_scaled<T>(dnorm / length, value, to, hidden);
  }
};

// Groups of at least `least` of n, by the sizes alone, for the groups are summed.
int64_t groups_of(int64_t n, int64_t least) { return even_groups(std::min<int64_t>(16, n / least)); }

}  // namespace

template <class T>
void concept_attention(const T* x, const T* c, const int64_t* offsets, const int64_t* concept_offsets, int64_t days, int64_t hidden,
                       T* out, T* total) {
  for_each_day(days, [&](int64_t day) {
    const Concepts<T> concepts(c, concept_offsets[day], concept_offsets[day + 1], hidden);
    const int64_t at = offsets[day];
    parallel_for(offsets[day + 1] - at, kTileRows, [&](int64_t begin, int64_t end) {
      const Scratch<T> similarity(kRowTile * kColumnTile);
      each_tile(at + begin, at + end, [&](int64_t i, int64_t n) {
        forward_tile<T>(x + i * hidden, n, concepts, similarity, out + i * hidden, total + i);
      });
    });
  });
}

template <class T>
void concept_attention_backward(const T* grad, const T* x, const T* c, const int64_t* offsets, const int64_t* concept_offsets,
                                int64_t days, int64_t hidden, const T* out, const T* total, T* dx, T* dc) {
  for_each_day(days, [&](int64_t day) {
    const Concepts<T> concepts(c, concept_offsets[day], concept_offsets[day + 1], hidden);
    const int64_t at = offsets[day], rows = offsets[day + 1] - at, count = concepts.count;
    if (rows == 0 || !concepts.all) std::fill(dc + concept_offsets[day] * hidden, dc + concept_offsets[day + 1] * hidden, T{0});
    if (count == 0) std::fill_n(dx + at * hidden, rows * hidden, T{0});
    if (rows == 0 || count == 0) return;
    // The longer side is cut into groups, so that it is the gradients of the shorter that come in parts.
    const bool by_concept = count > rows;
    const int64_t panels = (count + kPanel<T> - 1) / kPanel<T>;
    const int64_t concept_groups = by_concept ? groups_of(panels, 2) : 1, row_groups = by_concept ? 1 : groups_of(rows, 24);
    const int64_t tiles = row_groups * ((rows + row_groups * kRowTile - 1) / (row_groups * kRowTile));
    const Stocks<T> stocks(grad + at * hidden, x + at * hidden, out + at * hidden, total + at, rows, hidden, tiles);
    const Parts<T> of_stocks(concept_groups, rows, hidden, dx + at * hidden);
    const Parts<T> of_concepts(row_groups, count, hidden, concepts.all ? dc + concept_offsets[day] * hidden : nullptr);
    parallel_for(concept_groups * row_groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t column = by_concept ? g : 0, row = by_concept ? 0 : g;
        const Tile members(column, concept_groups, panels), part(row, row_groups, tiles);
        backward_block<T>(stocks, concepts, part.begin, part.end, members.begin * kPanel<T>, std::min(count, members.end * kPanel<T>),
                          of_stocks[column], of_concepts[row]);
      }
    });
    parallel_for(rows + count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < std::min(end, rows); ++i)
        of_stocks.join(i, stocks.x + i * hidden, stocks.norm[i], dx + (at + i) * hidden);
      for (int64_t j = std::max(begin, rows) - rows; j < end - rows; ++j)
        of_concepts.join(j, concepts.values + j * hidden, concepts.norm[j], dc + concepts.row[j] * hidden);
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
