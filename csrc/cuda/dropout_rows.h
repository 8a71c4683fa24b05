// Dropout between layers: a thread draws the four words of a counter and scales four columns of a row with them. The same mask as on
// the CPU for the same seed.
#pragma once

#include "../common/philox.h"
#include "block.h"
#include "recurrent.h"

namespace ak::cuda {

using portable::Dropout;
using portable::Philox;

template <class T_>
struct ScaleRows {
  using T = T_;
  using Arguments = DropoutRows;
  static constexpr int kThreads = 256, kBlocks = 1;

  AK_DEVICE static void run(const Block& block, const Arguments& a) {
    const int64_t counters = Dropout::counters(a.columns), number = block.index() * kThreads + block.thread();
    if (number >= a.rows * counters) return;
    const int64_t row = number / counters, column = number % counters * 4;
    uint32_t words[4][1];
    Philox{*a.seed}.draw<1>(Dropout::first(a.stream, row, a.columns) + static_cast<uint64_t>(number % counters), words);
    for (int i = 0; i < 4 && column + i < a.columns; ++i) {
      const int64_t at = row * a.columns + column + i;
      const float factor = words[i][0] >= a.threshold ? a.scale : 0.0f;
      static_cast<T*>(a.to)[at] = rounded<T>(factor * to_float(static_cast<const T*>(a.from)[at]));
    }
  }
};

}  // namespace ak::cuda
