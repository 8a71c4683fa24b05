// The gate of a GLU row by row: out = (residual + v[:, :h] * sigmoid(v[:, h:])) * scale with v = (u - mean) * a + b.
#pragma once

#include "ghost_statistics.h"

namespace ak::AK_ISA {
namespace {

// u [rows, 2h] -> out [rows, h]; residual [rows, h] may be null.
template <class T>
inline void gate_rows(const T* u, const T* residual, T* out, int64_t rows, int64_t h, const Affine<T>& v, T scale) {
  rows_together(0, rows, [&](auto together, int64_t i) {
    for_each_pack<T>(h, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      const P mv = load<P>(v.mean + j), av = load<P>(v.a + j), bv = load<P>(v.b + j);
      const P mg = load<P>(v.mean + h + j), ag = load<P>(v.a + h + j), bg = load<P>(v.b + h + j);
      for (int64_t r = i; r < i + together; ++r) {
        const T* row = u + r * 2 * h + j;
        P y = ((load<P>(row) - mv) * av + bv) * sigmoid<P, T>((load<P>(row + h) - mg) * ag + bg);
        if (residual != nullptr) y += load<P>(residual + r * h + j);
        store(out + r * h + j, static_cast<P>(y * scale));
      }
    });
  });
}

}  // namespace
}  // namespace ak::AK_ISA
