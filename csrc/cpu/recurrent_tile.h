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
#include "patch.h"
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

// Whether the products with the first state, which is zero, may be left out: with a second step a NaN shows in that one's.
template <class T>
bool starts_at_zero(const RecurrentArguments<T>& a) {
  return a.h0 == nullptr && a.sizes.steps > 1;
}

// The dropout after layer `layer`, of a patch's rows [steps][rows][columns], `stride` elements apart.
template <class T>
void drop(const Dropout& dropout, int64_t layer, const Patch& p, int64_t batch, int64_t columns, T* values, int64_t stride) {
  if (dropout.p <= 0) return;
  for (int64_t s = 0; s < p.steps; ++s)
    for (int64_t r = 0; r < p.rows; ++r)
      dropout.apply(layer, (p.begin + s) * batch + p.first + r, columns, values + (s * p.rows + r) * stride);
}

// [layer, T, B, columns], dense.
template <class T>
SequenceView<T> layer_view(T* data, int64_t layer, const RecurrentSizes& s, int64_t columns) {
  if (data == nullptr) return {nullptr, 0, 0, 1};
  return {data + layer * s.steps * s.batch * columns, columns, s.batch * columns, 1};
}

}  // namespace
}  // namespace ak::AK_ISA
