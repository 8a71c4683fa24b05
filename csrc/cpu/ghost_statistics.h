// Column statistics of ghost batches, shared by ghost_batch_norm and glu_block: mean and reciprocal deviation of every
// chunk, and the running statistics after all of them. Blocks of rows are summed in T around their own first row, and joined
// in float64 in a fixed order: accurate however large the mean, and the same for any number of threads.
#pragma once

#include "../common/chunks.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

struct RunningUpdate {
  double momentum, eps;
};

// x: [rows, n]; mean, rstd: [chunks, n]. running_* and linear_bias may be null; new_running_* are written when running_*
// are given. linear_bias is that of the linear layer before, left out of x because the norm cancels it.
template <class T>
void ghost_statistics(const T* x, int64_t n, const Chunks& chunks, RunningUpdate update, const T* running_mean,
                      const T* running_var, const T* linear_bias, T* mean, T* rstd, T* new_running_mean,
                      T* new_running_var) {
  const int64_t blocks = chunks.blocks();
  T* partial = new T[static_cast<size_t>(blocks * 2 * n)];  // [blocks, {mean, m2}, n]
  parallel_for(blocks, 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = chunks.block_begin(block), end = chunks.block_end(block);
      if (begin >= end) continue;
      const T scale = static_cast<T>(1) / static_cast<T>(end - begin);
      T *m = partial + block * 2 * n, *m2 = m + n;
      const T* origin = x + begin * n;
      for (int64_t j = 0; j < 2 * n; ++j) m[j] = 0;
      for (int64_t i = begin + 1; i < end; ++i) {
        const T* row = x + i * n;
        int64_t j = 0;
        for (; j + kLanes<T> <= n; j += kLanes<T>) {
          using V = Vec<T>;
          store(m + j, load<V>(m + j) + (load<V>(row + j) - load<V>(origin + j)));
        }
        for (; j < n; ++j) m[j] += row[j] - origin[j];
      }
      for (int64_t j = 0; j < n; ++j) m[j] *= scale;  // the mean, from the origin
      for (int64_t i = begin; i < end; ++i) {
        const T* row = x + i * n;
        int64_t j = 0;
        for (; j + kLanes<T> <= n; j += kLanes<T>) {
          using V = Vec<T>;
          const V d = (load<V>(row + j) - load<V>(origin + j)) - load<V>(m + j);
          store(m2 + j, load<V>(m2 + j) + d * d);
        }
        for (; j < n; ++j) {
          const T d = (row[j] - origin[j]) - m[j];
          m2[j] += d * d;
        }
      }
    }
  });

  const int64_t per_chunk = chunks.blocks_per_chunk();
  parallel_for(n, 64, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      double run_mean = running_mean != nullptr ? running_mean[j] : 0, run_var = running_var != nullptr ? running_var[j] : 0;
      for (int64_t c = 0; c < chunks.count; ++c) {
        const double rows = static_cast<double>(chunks.end(c) - chunks.begin(c));
        // Means from the chunk's first row: the differences are small even where the mean is huge.
        const double origin = x[chunks.begin(c) * n + j];
        double total = 0;
        for (int64_t b = c * per_chunk; b < (c + 1) * per_chunk; ++b) {
          const int64_t begin = chunks.block_begin(b), end = chunks.block_end(b);
          if (begin >= end) break;
          total += static_cast<double>(end - begin) * (partial[b * 2 * n + j] + (x[begin * n + j] - origin));
        }
        const double centre = total / rows;
        double m2 = 0;
        for (int64_t b = c * per_chunk; b < (c + 1) * per_chunk; ++b) {
          const int64_t begin = chunks.block_begin(b), end = chunks.block_end(b);
          if (begin >= end) break;
          const double d = partial[b * 2 * n + j] + (x[begin * n + j] - origin) - centre;
          m2 += partial[(b * 2 + 1) * n + j] + static_cast<double>(end - begin) * d * d;
        }
        const double mu = origin + centre;
        mean[c * n + j] = static_cast<T>(mu);
        rstd[c * n + j] = static_cast<T>(1.0 / std::sqrt(m2 / rows + update.eps));
        run_mean += update.momentum * (mu + (linear_bias != nullptr ? linear_bias[j] : 0) - run_mean);
        run_var += update.momentum * (m2 / (rows - 1) - run_var);
      }
      if (running_mean != nullptr) {
        new_running_mean[j] = static_cast<T>(run_mean);
        new_running_var[j] = static_cast<T>(run_var);
      }
    }
  });
  delete[] partial;
}

// In evaluation the running statistics stand for one chunk of all rows.
template <class T>
void running_statistics(const T* running_mean, const T* running_var, const T* linear_bias, int64_t n, double eps, T* mean,
                        T* rstd) {
  for (int64_t j = 0; j < n; ++j) {
    mean[j] = running_mean[j] - (linear_bias != nullptr ? linear_bias[j] : 0);
    rstd[j] = static_cast<T>(1.0 / std::sqrt(static_cast<double>(running_var[j]) + eps));
  }
}

// The two column sums every normalisation gradient needs, over each chunk: of dy, and of dy * xhat. `accumulate(i, chunk, s1, s2)`
// adds row i's dy and dy * xhat to s1 and s2, both [n]. Result: sums [chunks, 2, n] in T.
template <class T, class Accumulate>
void gradient_sums(int64_t n, const Chunks& chunks, T* sums, const Accumulate& accumulate) {
  const int64_t blocks = chunks.blocks(), per_chunk = chunks.blocks_per_chunk();
  T* partial = new T[static_cast<size_t>(blocks * 2 * n)];
  parallel_for(blocks, 1 + 16384 / (Chunks::kBlock * n), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      T* s = partial + block * 2 * n;
      for (int64_t j = 0; j < 2 * n; ++j) s[j] = 0;
      const int64_t chunk = chunks.chunk_of_block(block);
      for (int64_t i = chunks.block_begin(block); i < chunks.block_end(block); ++i) accumulate(i, chunk, s, s + n);
    }
  });
  parallel_for(2 * n, 128, [&](int64_t first, int64_t last) {
    for (int64_t c = 0; c < chunks.count; ++c)
      for (int64_t j = first; j < last; ++j) {
        double total = 0;
        for (int64_t b = c * per_chunk; b < (c + 1) * per_chunk; ++b) total += partial[b * 2 * n + j];
        sums[c * 2 * n + j] = static_cast<T>(total);
      }
  });
  delete[] partial;
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
