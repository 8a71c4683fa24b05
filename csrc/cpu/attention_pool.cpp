#include "attention_pool.h"

#include "../common/gemm.h"
#include "../common/parallel.h"
#include "../common/philox.h"
#include "patch.h"

namespace ak::AK_ISA {
namespace {

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  return sum_packs<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    return static_cast<P>(load<P>(a + j) * load<P>(b + j));
  });
}

// The weight as right operand of h @ weight.T, and what a block of rows needs on the way to its scores.
template <class T>
class Scores {
 public:
  explicit Scores(const AttentionPool<T>& a)
      : a_(a), stride_(round_up(a.attention, kPanel<T>)), packed_(packed_size<T>(a.hidden, a.attention)) {
    pack_transposed<T>(a.weight, a.hidden, a.hidden, a.attention, packed_);
  }
  int64_t stride() const { return stride_; }

  // tanh(dropout(W h + b)) of `count` tokens from `first` on, [count][stride]; `scores` are their products with v.
  void operator()(int64_t first, int64_t count, T* hidden, T* scores) const {
    multiply<T>(count, stride_, a_.hidden, {a_.h + first * a_.hidden, a_.hidden, 1}, packed_, hidden, stride_);
    const Dropout dropout{a_.seed, a_.dropout};
    for (int64_t i = 0; i < count; ++i) {
      T* row = hidden + i * stride_;
      if (a_.bias != nullptr)
        each_column_once<T>(a_.attention, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          store(row + j, static_cast<P>(load<P>(row + j) + load<P>(a_.bias + j)));
        });
      dropout.apply(0, first + i, a_.attention, row);
      for_each_pack<T>(stride_, [&](auto pack, int64_t j) {  // whole panels: the padding's zeros stay zeros
        using P = decltype(pack);
        store(row + j, tanh<P, T>(load<P>(row + j)));
      });
      scores[i] = dot(row, a_.score, a_.attention);
    }
  }

 private:
  const AttentionPool<T>& a_;
  int64_t stride_;
  Scratch<T> packed_;
};

template <class T>
void softmax(const T* scores, int64_t n, T* weights) {
  T largest = scores[0], sum = 0;
  for (int64_t t = 1; t < n; ++t) largest = maximum(largest, scores[t]);
  for (int64_t t = 0; t < n; ++t) {
    const T x = scores[t] - largest;
    weights[t] = x == x ? exp<T, T>(x) : x;  // the clamp inside exp would lose a NaN
    sum += weights[t];
  }
  for (int64_t t = 0; t < n; ++t) weights[t] /= sum;
}

}  // namespace

template <class T>
void attention_pool(const AttentionPool<T>& a, T* out, T* weights) {
  const Scores<T> score(a);
  const int64_t rows = block_rows(a.steps);
  parallel_for((a.batch + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> hidden(rows * a.steps * score.stride()), scores(rows * a.steps);
    for (int64_t first = begin * rows; first < std::min(a.batch, end * rows); first += rows) {
      const int64_t n = std::min(rows, a.batch - first);
      score(first * a.steps, n * a.steps, hidden, scores);
      for (int64_t b = first; b < first + n; ++b) {
        T *w = weights + b * a.steps, *pooled = out + (2 * b + 1) * a.hidden;
        softmax<T>(scores + (b - first) * a.steps, a.steps, w);
        const T* h = a.h + b * a.steps * a.hidden;
        std::copy_n(h + (a.steps - 1) * a.hidden, a.hidden, out + 2 * b * a.hidden);
        for_each_pack<T>(a.hidden, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          P sum{};
          for (int64_t t = 0; t < a.steps; ++t) sum += w[t] * load<P>(h + t * a.hidden + j);
          store(pooled + j, sum);
        });
      }
    }
  });
}

template <class T>
void attention_pool_backward(const AttentionPool<T>& a, const T* weights, const AttentionPoolGradients<T>& g) {
  const Scores<T> score(a);
  const int64_t width = score.stride(), wide = round_up(a.hidden, kPanel<T>), rows = block_rows(a.steps);
  Scratch<T> packed(packed_size<T>(a.attention, a.hidden));  // of the product with W
  pack<T>(a.weight, a.hidden, a.attention, a.hidden, packed);
  // Each group of blocks has its sums of its own, which are added in order: the same for any number of threads.
  const int64_t blocks = (a.batch + rows - 1) / rows, groups = std::min<int64_t>(blocks, 16), each = (blocks + groups - 1) / groups;
  const int64_t set = a.attention * wide + 2 * width;
  Scratch<T> sets(groups * set);
  parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
    const int64_t tokens = rows * a.steps;
    Scratch<T> hidden(tokens * width), scores(tokens), panels(tokens * wide);
    for (int64_t group = begin; group < end; ++group) {
      T *dweight = sets + group * set, *dbias = dweight + a.attention * wide, *dscore = dbias + width;
      std::fill(dweight, dweight + set, T{0});
      for (int64_t block = group * each; block < std::min(blocks, (group + 1) * each); ++block) {
        const int64_t first = block * rows, n = std::min(rows, a.batch - first), count = n * a.steps;
        const T* h = a.h + first * a.steps * a.hidden;
        T* dh = g.dh + first * a.steps * a.hidden;
        score(first * a.steps, count, hidden, scores);
        for (int64_t b = 0; b < n; ++b) {  // the scores' gradients in place of the scores
          const T *w = weights + (first + b) * a.steps, *pooled = g.out + (2 * (first + b) + 1) * a.hidden;
          T *ds = scores + b * a.steps, mean = 0;
          for (int64_t t = 0; t < a.steps; ++t) {
            ds[t] = dot(pooled, h + (b * a.steps + t) * a.hidden, a.hidden);
            if (g.weights != nullptr) ds[t] += g.weights[(first + b) * a.steps + t];
            mean += w[t] * ds[t];
          }
          for (int64_t t = 0; t < a.steps; ++t) ds[t] = w[t] * (ds[t] - mean);
          for (int64_t t = 0; t < a.steps; ++t)
            for_each_pack<T>(a.hidden, [&](auto pack, int64_t j) {
              using P = decltype(pack);
              P d = w[t] * load<P>(pooled + j);
              if (t + 1 == a.steps) d += load<P>(pooled - a.hidden + j);
              store(dh + (b * a.steps + t) * a.hidden + j, d);
            });
        }
        for (int64_t i = 0; i < count; ++i) {  // W h + b's gradients in place of the tanh
          T *row = hidden + i * width, ds = scores[i];
          each_column_once<T>(a.attention, [&](auto pack, int64_t j) {
            using P = decltype(pack);
            const P y = load<P>(row + j);
            store(dscore + j, static_cast<P>(load<P>(dscore + j) + ds * y));
            store(row + j, static_cast<P>(ds * load<P>(a.score + j) * (1 - y * y)));
          });
          Dropout{a.seed, a.dropout}.apply(0, first * a.steps + i, a.attention, row);
          each_column_once<T>(a.attention, [&](auto pack, int64_t j) {
            using P = decltype(pack);
            store(dbias + j, static_cast<P>(load<P>(dbias + j) + load<P>(row + j)));
          });
          pack_row<kPanel<T>>(h + i * a.hidden, a.hidden, static_cast<T*>(panels), count, i);
        }
        multiply<T>(count, a.hidden, a.attention, {hidden, width, 1}, packed, dh, a.hidden, true);
        multiply<T>(a.attention, wide, count, {hidden, 1, width}, panels, dweight, wide, true);
      }
    }
  });
  const auto total = [&](const T* at, int64_t n, T* to) {
    for (int64_t j = 0; j < n; ++j) {
      T sum = at[j];
      for (int64_t group = 1; group < groups; ++group) sum += at[group * set + j];
      to[j] = sum;
    }
  };
  for (int64_t i = 0; i < a.attention; ++i) total(sets + i * wide, a.hidden, g.dweight + i * a.hidden);
  total(sets + a.attention * wide, a.attention, g.dbias);
  total(sets + a.attention * wide + width, a.attention, g.dscore);
}

#define AK_INSTANTIATE(T)                                                    \
  template void attention_pool<T>(const AttentionPool<T>&, T*, T*);          \
  template void attention_pool_backward<T>(const AttentionPool<T>&, const T*, const AttentionPoolGradients<T>&);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
