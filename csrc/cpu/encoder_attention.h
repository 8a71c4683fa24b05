// Self-attention of one sample over its T steps, head by head: a head's scores are one [T, T] tile in cache.
#pragma once

#include "../common/gemm.h"
#include "../common/philox.h"

namespace ak::AK_ISA {
namespace {

template <class T>
struct Attention {
  int64_t steps, width, heads;
  const T* mask;  // [T, T] or null
  Dropout drop;

  int64_t head_width() const { return width / heads; }
  int64_t columns() const { return round_up(steps, kPanel<T>); }  // of a row of scores
  T scale() const { return static_cast<T>(1 / std::sqrt(static_cast<double>(head_width()))); }
  // Elements that one packed operand takes at most.
  int64_t packed() const { return std::max(packed_size<T>(head_width(), steps), packed_size<T>(steps, head_width())); }
  int64_t forward_scratch() const { return steps * columns() + packed(); }
  int64_t backward_scratch() const { return 3 * steps * columns() + packed(); }
};

// weights [T, columns()] = softmax(q k^T * scale + mask) of one head; q, k with rows 3d apart, as the projection writes them.
template <class T>
inline void attention_weights(const Attention<T>& at, const T* q, const T* k, T* weights, T* packed) {
  const int64_t n = at.steps, columns = at.columns(), row = 3 * at.width;
  pack_transposed<T>(k, row, at.head_width(), n, packed);
  multiply<T>(n, columns, at.head_width(), {q, row, 1}, packed, weights, columns);
  const T scale = at.scale(), lowest = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    T* w = weights + i * columns;
    if (at.mask != nullptr)
      for (int64_t j = 0; j < n; ++j) w[j] = w[j] * scale + at.mask[i * n + j];
    else
      for (int64_t j = 0; j < n; ++j) w[j] *= scale;
    for (int64_t j = n; j < columns; ++j) w[j] = lowest;
    Vec<T> top = splat<Vec<T>>(lowest), sum = {};
    for (int64_t j = 0; j < columns; j += kLanes<T>) top = maximum(top, load<Vec<T>>(w + j));
    const T highest = max_lanes<T>(top);
    for (int64_t j = 0; j < columns; j += kLanes<T>) {
      const Vec<T> x = load<Vec<T>>(w + j) - highest;  // NaN where all of the row is masked
      const Vec<T> e = x < -Bits<T>::exp_limit ? Vec<T>{} : exp<Vec<T>, T>(x);
      const Vec<T> value = x == x ? e : x;
      store(w + j, value);
      sum += value;
    }
    const T inverse = 1 / sum_lanes<T>(sum);
    for (int64_t j = 0; j < columns; j += kLanes<T>) store(w + j, static_cast<Vec<T>>(load<Vec<T>>(w + j) * inverse));
  }
}

template <class T>
inline void drop_weights(const Attention<T>& at, int64_t sample, int64_t head, T* weights) {
  if (at.drop.p <= 0) return;
  for (int64_t i = 0; i < at.steps; ++i)
    at.drop.apply(0, (sample * at.heads + head) * at.steps + i, at.steps, weights + i * at.columns());
}

// mixed [T, d], the heads' outputs side by side, from qkv [T, 3d].
template <class T>
inline void attention_forward(const Attention<T>& at, int64_t sample, const T* qkv, T* mixed, T* scratch) {
  const int64_t n = at.steps, d = at.width, h = at.head_width(), columns = at.columns();
  T *weights = scratch, *packed = weights + n * columns;
  for (int64_t head = 0; head < at.heads; ++head) {
    const T* q = qkv + head * h;
    attention_weights(at, q, q + d, weights, packed);
    drop_weights(at, sample, head, weights);
    pack<T>(q + 2 * d, 3 * d, n, h, packed);
    multiply<T>(n, h, n, {weights, columns, 1}, packed, mixed + head * h, d);
  }
}

// dqkv [T, 3d] from dmixed [T, d].
template <class T>
inline void attention_backward(const Attention<T>& at, int64_t sample, const T* qkv, const T* dmixed, T* dqkv, T* scratch) {
  const int64_t n = at.steps, d = at.width, h = at.head_width(), columns = at.columns(), row = 3 * d;
  T *weights = scratch, *dropped = weights + n * columns, *grad = dropped + n * columns, *packed = grad + n * columns;
  const T scale = at.scale();
  for (int64_t head = 0; head < at.heads; ++head) {
    const T *q = qkv + head * h, *k = q + d, *v = k + d, *dout = dmixed + head * h;
    T *dq = dqkv + head * h, *dk = dq + d, *dv = dk + d;
    attention_weights(at, q, k, weights, packed);
    const T* used = weights;
    if (at.drop.p > 0) {
      std::memcpy(dropped, weights, static_cast<size_t>(n * columns) * sizeof(T));
      drop_weights(at, sample, head, dropped);
      used = dropped;
    }
    pack<T>(dout, d, n, h, packed);
    multiply<T>(n, h, n, {used, 1, columns}, packed, dv, row);
    pack_transposed<T>(v, row, h, n, packed);
    multiply<T>(n, columns, h, {dout, d, 1}, packed, grad, columns);
    drop_weights(at, sample, head, grad);
    for (int64_t i = 0; i < n; ++i) {  // the softmax
      const T* w = weights + i * columns;
      T* g = grad + i * columns;
      Vec<T> dot = {};
      for (int64_t j = 0; j < columns; j += kLanes<T>) dot += load<Vec<T>>(w + j) * load<Vec<T>>(g + j);
      const T mean = sum_lanes<T>(dot);
      for (int64_t j = 0; j < columns; j += kLanes<T>)
        store(g + j, static_cast<Vec<T>>(load<Vec<T>>(w + j) * (load<Vec<T>>(g + j) - mean) * scale));
    }
    pack<T>(k, row, n, h, packed);
    multiply<T>(n, h, n, {grad, columns, 1}, packed, dq, row);
    pack<T>(q, row, n, h, packed);
    multiply<T>(n, h, n, {grad, 1, columns}, packed, dk, row);
  }
}

}  // namespace
}  // namespace ak::AK_ISA
