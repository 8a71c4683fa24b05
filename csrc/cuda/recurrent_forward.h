// One layer over all steps: h and c never leave the registers of the threads that own them, but for h as the left operand of the next
// step's product, which passes through shared memory.
//
// Floor of a step of a tile of 16 rows: 2 * 16 * G * H * H operations on one multiprocessor; per row G * H numbers read (the sums),
// H written (h) and, where backward is to come, 4H more (LSTM 5H). At H 64 and tf32 a GRU's step is 24 tensor instructions a warp: the
// chain of the 8 that depend on each other, one barrier and one cell are what a step waits for, and the reads of step t pass during
// its product.
#pragma once

#include "../common/cells.h"
#include "resident.h"

namespace ak::cuda {

template <class Cell, class Resident, bool vectors, int whole>
struct Forward {
  using Arguments = RecurrentForward;
  using T = typename Resident::T;
  static constexpr int kThreads = Resident::kThreads, kGates = Cell::kGates, kTiles = Resident::kTiles, kUnits = 2 * kTiles;
  static constexpr int kBlocks = vectors ? Resident::kBlocks : 1;
  static constexpr int kStride = padded_words(Resident::kGateWords), kTile = kTileRows * kStride;

  static int64_t shared_bytes(int64_t hidden) { return 4 * (2 * kTile + Resident::weight_words(hidden)); }

  // Cell::kSumOfH, whose elements a kernel cannot read: they are the host's.
  AK_DEVICE static constexpr int sum_of_h(int gate) { return Cell::kGates == 3 && gate == 2 ? 3 : gate; }
  static_assert(Cell::kSumOfH[0] == 0 && Cell::kSumOfH[1] == 1 && Cell::kSumOfH[2] == (Cell::kGates == 3 ? 3 : 2));

  AK_DEVICE static void run(const Block& block, const Arguments& a) {
    const int hidden = whole > 0 ? whole : static_cast<int>(a.hidden);
    const int64_t sequence = a.batch * (whole > 0 ? whole : a.hidden);
    const Part<kUnits, vectors, whole> part(block, a.batch, a.hidden);
    const Owner<kTiles> owner(block.thread());
    uint32_t* const tiles = block.shared();  // two tiles of h: one that a step reads, one that it writes
    const Resident resident(block, tiles + 2 * kTile, GateMatrices<T, true>{static_cast<const T*>(a.weight), hidden});

    float h[2][kUnits], c[2][kUnits], bias[kUnits] = {};
    part.read_state(static_cast<const T*>(a.h0), h);
    if constexpr (Cell::kCellState) part.read_state(static_cast<const T*>(a.c0), c);
    if (a.bias != nullptr) {
#pragma unroll
      for (int e = 0; e < kUnits; ++e) bias[e] = part.inside(e) ? to_float(static_cast<const T*>(a.bias)[part.unit() + e]) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) Resident::put(tiles + owner.row(r) * kStride, part.unit(), h[r]);
    block.sync();

    const T* sums_x = static_cast<const T*>(a.sums.data);
    T *gates = static_cast<T*>(a.gates), *cells = static_cast<T*>(a.cells), *output = static_cast<T*>(a.output.data);
    for (int64_t t = 0; t < a.steps; ++t) {
      Pack<T, kUnits> x[2][kGates];
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int g = 0; g < kGates; ++g) x[r][g] = part.read(r, sums_x, a.sums.row, g * hidden);

      float sums_h[kTiles][kGates][4] = {};
      if constexpr (!Cell::kCellState) {
#pragma unroll
        for (int i = 0; i < 4 * kTiles; ++i) sums_h[i / 4][2][i % 4] = bias[i / 4 * 2 + i % 2];
      }
      resident.template add<kStride, 0>(tiles + t % 2 * kTile, sums_h);

      // Behind the product, which waits for itself, and without a branch, which would part the two.
      const T* const ahead = sums_x + (t + 2 < a.steps ? 2 * a.sums.step : 0);
#pragma unroll
      for (int g = 0; g < kGates; ++g) part.prefetch(block, ahead, a.sums.row, g * hidden);

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float kept[4][kUnits];
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          float sums[4] = {}, kept_e[4], after;
#pragma unroll
          for (int g = 0; g < kGates; ++g) sums[g] = to_float(x[r][g].v[e]);
#pragma unroll
          for (int g = 0; g < kGates; ++g) sums[sum_of_h(g)] += sums_h[e / 2][g][2 * r + e % 2];
          const float out = Cell::template forward<Math<T>>(sums, Cell::kCellState ? c[r][e] : h[r][e], after, kept_e);
          h[r][e] = part.inside(e) ? out : 0.0f;  // what lies beyond the hidden size must not meet the next product
          if constexpr (Cell::kCellState) c[r][e] = after;
#pragma unroll
          for (int g = 0; g < 4; ++g) kept[g][e] = kept_e[g];
        }
        Resident::put(tiles + (t + 1) % 2 * kTile + owner.row(r) * kStride, part.unit(), h[r]);
        if (gates != nullptr)
#pragma unroll
          for (int g = 0; g < 4; ++g) part.write(r, gates, 4 * hidden, g * hidden, kept[g]);
      }
      if (gates != nullptr) gates += 4 * sequence;
      if (output != nullptr) {
        part.write(output, a.output.row, h);
        output += a.output.step;
      }
      if constexpr (Cell::kCellState)
        if (cells != nullptr) {
          part.write(cells, hidden, c);
          cells += sequence;
        }
      sums_x += a.sums.step;
      block.sync();
    }
    part.write(static_cast<T*>(a.h_n), hidden, h);
    if constexpr (Cell::kCellState) part.write(static_cast<T*>(a.c_n), hidden, c);
  }
};

}  // namespace ak::cuda
