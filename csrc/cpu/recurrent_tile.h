// What the forward and the backward pass of `recurrent` share: a tile of batch rows, worked through from the first step to the last
// (or back) in chunks of a few steps, whose buffers stay in the cache.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "../common/cells.h"
#include "../common/gemm.h"
#include "../common/parallel.h"
#include "../common/philox.h"
#include "recurrent.h"

namespace ak::AK_ISA {
namespace {

template <class T>
struct Math {
  template <class P>
  static P sigmoid(P x) {
    return ak::AK_ISA::sigmoid<P, T>(x);
  }
  template <class P>
  static P tanh(P x) {
    return ak::AK_ISA::tanh<P, T>(x);
  }
};

// Rows [first, first + rows) of the batch and steps [begin, begin + steps) of time.
struct Patch {
  int64_t first, rows, begin, steps;
};

// Copies a patch of a sequence to [steps][rows][columns], rows `stride` elements apart.
template <class T>
void gather(const SequenceView<const T>& from, const Patch& p, int64_t columns, T* to, int64_t stride) {
  if (from.column == 1) {
    for (int64_t s = 0; s < p.steps; ++s)
      for (int64_t r = 0; r < p.rows; ++r)
        std::memcpy(to + (s * p.rows + r) * stride, from.at(p.first + r, p.begin + s), static_cast<size_t>(columns) * sizeof(T));
    return;
  }
  for (int64_t r = 0; r < p.rows; ++r)  // feature after feature, each over all steps: Alpha360's rows
    for (int64_t j = 0; j < columns; ++j) {
      const T* source = from.at(p.first + r, p.begin) + j * from.column;
      for (int64_t s = 0; s < p.steps; ++s) to[(s * p.rows + r) * stride + j] = source[s * from.step];
    }
}

// The dropout after layer `layer`, of a patch's rows [steps][rows][columns], `stride` elements apart.
template <class T>
void drop(const Dropout& dropout, int64_t layer, const Patch& p, int64_t batch, int64_t columns, T* values, int64_t stride) {
  if (dropout.p <= 0) return;
  for (int64_t s = 0; s < p.steps; ++s)
    for (int64_t r = 0; r < p.rows; ++r)
      dropout.apply(layer, (p.begin + s) * batch + p.first + r, columns, values + (s * p.rows + r) * stride);
}

// The inverse of gather.
template <class T>
void scatter(const T* from, int64_t stride, const Patch& p, int64_t columns, const SequenceView<T>& to) {
  for (int64_t s = 0; s < p.steps; ++s)
    for (int64_t r = 0; r < p.rows; ++r) {
      T* row = to.at(p.first + r, p.begin + s);
      const T* source = from + (s * p.rows + r) * stride;
      if (to.column == 1)
        std::memcpy(row, source, static_cast<size_t>(columns) * sizeof(T));
      else
        for (int64_t j = 0; j < columns; ++j) row[j * to.column] = source[j];
    }
}

// [layer, T, B, columns], dense.
template <class T>
SequenceView<T> layer_view(T* data, int64_t layer, const RecurrentSizes& s, int64_t columns) {
  if (data == nullptr) return {nullptr, 0, 0, 1};
  return {data + layer * s.steps * s.batch * columns, columns, s.batch * columns, 1};
}

}  // namespace
}  // namespace ak::AK_ISA
