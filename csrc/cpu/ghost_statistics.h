// Column statistics of ghost batches, shared by ghost_batch_norm and glu_block: mean and reciprocal deviation of every
// chunk, and the running statistics after all of them.
//
// One pass sums d and d^2, where d is the distance from an origin near the chunk's mean: the average of some rows spread over the
// chunk. Taking the mean's part off the sum of squares then costs next to no digits, however large the mean, and a row far
// out, sampled or not, adds as much to the true sum as to its rounding. Blocks of rows are summed in T and joined in float64 in
// a fixed order: the result is the same for any number of threads.
#pragma once

#include <type_traits>

#include "../common/chunks.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

struct RunningUpdate {
  double momentum, eps;
};

constexpr int64_t kSampledRows = 32;
constexpr int64_t kRowsTogether = 4;

// Adds rows x, x + n, ... to the sums: a few together, so that the sums are loaded and stored once for all of them.
template <int rows, class T>
inline void add_rows(const T* x, const T* origin, int64_t n, T* s1, T* s2) {
  const auto add = [&](auto pack, int64_t j) {
    using P = decltype(pack);
    const P o = load<P>(origin + j);
    P a = load<P>(s1 + j), b = load<P>(s2 + j);
    for (int r = 0; r < rows; ++r) {
      const P d = load<P>(x + r * n + j) - o;
      a += d;
      b += d * d;
    }
    store(s1 + j, a);
    store(s2 + j, b);
  };
  each_column_once<T>(n, add);
}

// x: [rows, n]; mean, mean_rest, rstd: [chunks, n]; mean_rest is what rounding the mean to T left over. running_* and linear_bias may be
// null; new_running_* are written when running_* are given. linear_bias is that of the linear layer before, left out of x because the norm
// cancels it.
template <class T>
void ghost_statistics(const T* x, int64_t n, const Chunks& chunks, RunningUpdate update, const T* running_mean,
                      const T* running_var, const T* linear_bias, T* mean, T* mean_rest, T* rstd,
                      T* new_running_mean, T* new_running_var) {
  const int64_t blocks = chunks.blocks();
  T* partial = new T[static_cast<size_t>(blocks * 2 * n)];   // [blocks, {sum d, sum d^2}, n]
  T* origin = new T[static_cast<size_t>(chunks.count * n)];  // [chunks, n]
  parallel_for(chunks.count, 1 + 16384 / (kSampledRows * n), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const int64_t rows = chunks.end(c) - chunks.begin(c), samples = rows < kSampledRows ? rows : kSampledRows;
      T* o = origin + c * n;
      for (int64_t j = 0; j < n; ++j) o[j] = 0;
      for (int64_t k = 0; k < samples; ++k) {
        const T* row = x + (chunks.begin(c) + k * rows / samples) * n;
        for (int64_t j = 0; j < n; ++j) o[j] += row[j] / static_cast<T>(samples);
      }
    }
  });
  parallel_for(blocks, 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t end = chunks.block_end(block);
      const T* o = origin + chunks.chunk_of_block(block) * n;
      T *s1 = partial + block * 2 * n, *s2 = s1 + n;
      for (int64_t j = 0; j < 2 * n; ++j) s1[j] = 0;
      int64_t i = chunks.block_begin(block);
      for (; i + kRowsTogether <= end; i += kRowsTogether) add_rows<kRowsTogether>(x + i * n, o, n, s1, s2);
      for (; i < end; ++i) add_rows<1>(x + i * n, o, n, s1, s2);
    }
  });

  const int64_t per_chunk = chunks.blocks_per_chunk();
  parallel_for(n, 64, [&](int64_t first, int64_t last) {
    const int64_t width = last - first;
    double* work = new double[static_cast<size_t>(4 * width)];
    double *centre = work, *m2 = work + width, *run_mean = work + 2 * width, *run_var = work + 3 * width;
    for (int64_t k = 0; k < width; ++k) {
      run_mean[k] = running_mean != nullptr ? running_mean[first + k] : 0;
      run_var[k] = running_var != nullptr ? running_var[first + k] : 0;
    }
    for (int64_t c = 0; c < chunks.count; ++c) {
      const double rows = static_cast<double>(chunks.end(c) - chunks.begin(c));
      for (int64_t k = 0; k < 2 * width; ++k) work[k] = 0;
      for (int64_t b = c * per_chunk; b < (c + 1) * per_chunk; ++b)
        for (int64_t k = 0; k < width; ++k) {
          centre[k] += partial[b * 2 * n + first + k];
          m2[k] += partial[(b * 2 + 1) * n + first + k];
        }
      for (int64_t k = 0; k < width; ++k) {
        const int64_t j = first + k;
        const double d = centre[k] / rows, mu = static_cast<double>(origin[c * n + j]) + d;
        m2[k] -= rows * d * d;
        m2[k] = m2[k] < 0 ? 0 : m2[k];  // rounding alone; a NaN stays
        mean[c * n + j] = static_cast<T>(mu);
        mean_rest[c * n + j] = static_cast<T>(mu - static_cast<double>(mean[c * n + j]));
        rstd[c * n + j] = static_cast<T>(1.0 / std::sqrt(m2[k] / rows + update.eps));
        run_mean[k] += update.momentum * (mu + (linear_bias != nullptr ? linear_bias[j] : 0) - run_mean[k]);
        run_var[k] += update.momentum * (m2[k] / (rows - 1) - run_var[k]);
      }
    }
    if (running_mean != nullptr)
      for (int64_t k = 0; k < width; ++k) {
        new_running_mean[first + k] = static_cast<T>(run_mean[k]);
        new_running_var[first + k] = static_cast<T>(run_var[k]);
      }
    delete[] work;
  });
  delete[] origin;
  delete[] partial;
}

// In evaluation the running statistics stand for one chunk of all rows.
template <class T>
void running_statistics(const T* running_mean, const T* running_var, const T* linear_bias, int64_t n, double eps, T* mean,
                        T* mean_rest, T* rstd) {
  for (int64_t j = 0; j < n; ++j) {
    const double mu = static_cast<double>(running_mean[j]) - (linear_bias != nullptr ? linear_bias[j] : 0);
    mean[j] = static_cast<T>(mu);
    mean_rest[j] = static_cast<T>(mu - static_cast<double>(mean[j]));
    rstd[j] = static_cast<T>(1.0 / std::sqrt(static_cast<double>(running_var[j]) + eps));
  }
}

// v = (u - mean) * a + b column by column, where a and b carry the whole norm of a chunk: [2h] each. The mean is taken off first, so
// that a large mean costs no digits.
template <class T>
struct Affine {
  const T *mean, *a, *b;
  template <class P>
  P operator()(const T* u, int64_t j) const {
    return (load<P>(u + j) - load<P>(mean + j)) * load<P>(a + j) + load<P>(b + j);
  }
};

// mean, a = rstd * weight and b = bias of every chunk, [chunks, 3, n]; identity without a norm. b takes up what rounding left of
// the mean, where it is known: with a mean far larger than the deviation those are the digits that count.
template <class T>
T* affine_of(int64_t n, int64_t chunks, const T* mean, const T* mean_rest, const T* rstd, const T* weight, const T* bias) {
  T* table = new T[static_cast<size_t>(chunks * 3 * n)];
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t j = 0; j < n; ++j) {
      T* t = table + c * 3 * n + j;
      t[0] = mean != nullptr ? mean[c * n + j] : 0;
      t[n] = (rstd != nullptr ? rstd[c * n + j] : 1) * (weight != nullptr ? weight[j] : 1);
      t[2 * n] = (bias != nullptr ? bias[j] : 0) - (mean_rest != nullptr ? mean_rest[c * n + j] * t[n] : 0);
    }
  return table;
}

template <class T>
Affine<T> affine_at(const T* table, int64_t n, int64_t chunk) {
  const T* t = table + chunk * 3 * n;
  return {t, t + n, t + 2 * n};
}

// Calls f(rows_together, i) for rows [begin, end), a few together so that what belongs to a column is loaded once for all of them.
template <class F>
inline void rows_together(int64_t begin, int64_t end, const F& f) {
  int64_t i = begin;
  for (; i + kRowsTogether <= end; i += kRowsTogether) f(std::integral_constant<int, kRowsTogether>{}, i);
  for (; i < end; ++i) f(std::integral_constant<int, 1>{}, i);
}

// The two column sums every normalisation gradient needs, over each chunk: of dy, and of dy * xhat. `accumulate(begin, end, chunk,
// s1, s2)` adds dy and dy * (x - mean) of rows [begin, end) to s1 and s2, both [n]. Result: sums [chunks, 2, n] in T.
template <class T, class Accumulate>
void gradient_sums(int64_t n, const Chunks& chunks, const T* rstd, T* sums, const Accumulate& accumulate) {
  const int64_t blocks = chunks.blocks(), per_chunk = chunks.blocks_per_chunk();
  T* partial = new T[static_cast<size_t>(blocks * 2 * n)];
  parallel_for(blocks, 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      T* s = partial + block * 2 * n;
      for (int64_t j = 0; j < 2 * n; ++j) s[j] = 0;
      accumulate(chunks.block_begin(block), chunks.block_end(block), chunks.chunk_of_block(block), s, s + n);
    }
  });
  parallel_for(2 * n, 128, [&](int64_t first, int64_t last) {
    for (int64_t c = 0; c < chunks.count; ++c)
      for (int64_t j = first; j < last; ++j) {
        double total = 0;
        for (int64_t b = c * per_chunk; b < (c + 1) * per_chunk; ++b) total += partial[b * 2 * n + j];
        sums[c * 2 * n + j] = static_cast<T>(j < n ? total : total * static_cast<double>(rstd[c * n + j - n]));
      }
  });
  delete[] partial;
}

// The gradient of the norm's input from that of its output, dy, which dx may take the place of:
// a (dy - mean dy - xhat mean(dy * xhat)) with a = rstd * weight; in evaluation a dy.
template <class T>
void input_gradient(int64_t n, const Chunks& chunks, const T* dy, const T* x, const T* mean, const T* rstd, const T* weight,
                    const T* sums, bool training, T* dx) {
  T* table = new T[static_cast<size_t>(chunks.count * 3 * n)];  // dx = a dy - shift - (x - mean) slope, [chunks, {a, shift, slope}, n]
  for (int64_t c = 0; c < chunks.count; ++c) {
    const double rows = static_cast<double>(chunks.end(c) - chunks.begin(c));
    const T* s = sums + c * 2 * n;
    T* t = table + c * 3 * n;
    for (int64_t j = 0; j < n; ++j) {
      const double r = rstd[c * n + j], a = weight != nullptr ? r * weight[j] : r;
      t[j] = static_cast<T>(a);
      t[n + j] = static_cast<T>(a * s[j] / rows);
      t[2 * n + j] = static_cast<T>(a * r * s[n + j] / rows);
    }
  }
  parallel_for(chunks.blocks(), 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = chunks.chunk_of_block(block);
      const T *a = table + c * 3 * n, *shift = a + n, *slope = shift + n, *m = mean + c * n;
      rows_together(chunks.block_begin(block), chunks.block_end(block), [&](auto rows, int64_t i) {
        each_column_once<T>(n, [&](auto pack, int64_t j) {  // perhaps in place: each column once
          using P = decltype(pack);
          const P aj = load<P>(a + j), shift_j = load<P>(shift + j), slope_j = load<P>(slope + j), mj = load<P>(m + j);
          for (int64_t k = (i * n + j), r = 0; r < rows; ++r, k += n) {
            P d = aj * load<P>(dy + k);
            if (training) d -= shift_j + (load<P>(x + k) - mj) * slope_j;
            store(dx + k, d);
          }
        });
      });
    }
  });
  delete[] table;
}

// dbias = sum over chunks of sum dy; dweight = of sum dy * xhat.
template <class T>
void parameter_gradients(int64_t n, int64_t chunks, const T* sums, T* dweight, T* dbias) {
  for (int64_t j = 0; j < n; ++j) {
    double b = 0, w = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      b += sums[c * 2 * n + j];
      w += sums[(c * 2 + 1) * n + j];
    }
    dbias[j] = static_cast<T>(b);
    dweight[j] = static_cast<T>(w);
  }
}

}  // namespace
}  // namespace ak::AK_ISA
