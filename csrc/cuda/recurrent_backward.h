// Back through one layer over all steps: dh and dc never leave the registers of the threads that own them; the gates' gradients pass
// through shared memory as the left operand of the product that takes them to the step before, and to global memory, where one matrix
// product over all steps makes them the gradients of the weights.
//
// Floor of a step of a tile of 16 rows: 2 * 16 * G * H * H operations, as forward; per row 4H numbers read (what forward kept), H each
// of the gradient of h and of the state before, and 4H written. Each gate sums by itself, so no more tensor instructions depend on
// each other than forward; the reads of the step to come pass during the product.
#pragma once

#include "../common/cells.h"
#include "resident.h"

namespace ak::cuda {

template <class Cell, class Resident, bool vectors, int whole>
struct Backward {
  using Arguments = RecurrentBackward;
  using T = typename Resident::T;
  static constexpr int kThreads = Resident::kThreads, kGates = Cell::kGates, kTiles = Resident::kTiles, kUnits = 2 * kTiles;
  static constexpr int kBlocks = vectors ? Resident::kBlocks : 1;
  static constexpr int kStride = padded_words(kGates * Resident::kGateWords), kTile = kTileRows * kStride;
  static constexpr int kBuffers = Resident::kBuffers;
  static constexpr bool kReadsAhead = vectors;  // the many addresses of single numbers take the registers to wait in

  static int64_t shared_bytes(int64_t hidden) { return 4 * (kBuffers * kTile + Resident::weight_words(hidden)); }

  // What a step reads that does not depend on the step after it.
  struct Fetched {
    Pack<T, kUnits> kept[4], before, dh;
  };

  AK_DEVICE static void run(const Block& block, const Arguments& a) {
    const int hidden = whole > 0 ? whole : static_cast<int>(a.hidden);
    const int64_t sequence = a.batch * (whole > 0 ? whole : a.hidden);
    const Part<kUnits, vectors, whole> part(block, a.batch, a.hidden);
    const Owner<kTiles> owner(block.thread());
    uint32_t* const tiles = block.shared();
    const Resident resident(block, tiles + kBuffers * kTile, GateMatrices<T, false>{static_cast<const T*>(a.weight), hidden});
    block.sync();

    // The state before step t is that of step t - 1, or the initial one: c of an LSTM, h of a GRU.
    const T* const initial = static_cast<const T*>(Cell::kCellState ? a.c0 : a.h0);
    const int64_t state_step = Cell::kCellState ? sequence : a.output.step, state_row = Cell::kCellState ? hidden : a.output.row;
    const T* const states = static_cast<const T*>(Cell::kCellState ? a.cells : a.output.data);
    const auto fetch = [&](int64_t t, Fetched (&to)[2]) {
      const T* const gates = static_cast<const T*>(a.gates) + t * 4 * sequence;
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int g = 0; g < 4; ++g) to[r].kept[g] = part.read(r, gates, 4 * hidden, g * hidden);
      const T* const before = t > 0 ? states + (t - 1) * state_step : initial;
      const int64_t row = t > 0 ? state_row : hidden;
#pragma unroll
      for (int r = 0; r < 2; ++r) to[r].before = before != nullptr ? part.read(r, before, row) : Pack<T, kUnits>{};
      const T* const grad = static_cast<const T*>(a.grad_output.data);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        to[r].dh = grad != nullptr ? part.read(r, grad + t * a.grad_output.step, a.grad_output.row) : Pack<T, kUnits>{};
      if (t > 1)
#pragma unroll
        for (int g = 0; g < 4; ++g) part.prefetch(block, gates - 8 * sequence, 4 * hidden, g * hidden);
    };

    float dh[2][kUnits], dc[2][kUnits], after[2][kUnits], bias_grads[4][kUnits] = {};
    part.read_state(static_cast<const T*>(a.grad_h_n), dh);
    if constexpr (Cell::kCellState) {
      part.read_state(static_cast<const T*>(a.grad_c_n), dc);
      part.read_state(static_cast<const T*>(a.cells) + (a.steps - 1) * sequence, after);
    }
    Fetched fetched[2];
    fetch(a.steps - 1, fetched);

    for (int64_t t = a.steps - 1; t >= 0; --t) {
      uint32_t* const tile = tiles + (kBuffers == 2 ? t % 2 : 0) * kTile;
      T* const grads_t = static_cast<T*>(a.grads) + t * 4 * sequence;
      float carried[2][kUnits];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float grads[4][kUnits];
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          float kept_e[4], grad_e[4];
#pragma unroll
          for (int g = 0; g < 4; ++g) kept_e[g] = to_float(fetched[r].kept[g].v[e]);
          const float before = to_float(fetched[r].before.v[e]);
          float& carried_e = Cell::kCellState ? dc[r][e] : carried[r][e];
          Cell::template backward<Math<T>>(kept_e, before, after[r][e], dh[r][e] + to_float(fetched[r].dh.v[e]), carried_e, grad_e);
          if constexpr (Cell::kCellState) after[r][e] = before;
#pragma unroll
          for (int g = 0; g < 4; ++g) {
            grads[g][e] = part.inside(e) ? grad_e[g] : 0.0f;  // what lies beyond the hidden size must not meet the product
            if (part.live(r)) bias_grads[g][e] += grads[g][e];
          }
        }
#pragma unroll
        for (int g = 0; g < kGates; ++g)
          Resident::put(tile + owner.row(r) * kStride + g * Resident::kGateWords, part.unit(), grads[Cell::kFirstH + g]);
#pragma unroll
        for (int g = 0; g < 4; ++g) part.write(r, grads_t, 4 * hidden, g * hidden, grads[g]);
      }
      if (kReadsAhead && t > 0) fetch(t - 1, fetched);
      block.sync();

      float sums[kTiles][kGates][4] = {};
      resident.template add<kStride, Resident::kGateWords>(tile, sums);
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int e = 0; e < kUnits; ++e) {
          dh[r][e] = Cell::kCellState ? 0.0f : carried[r][e];
#pragma unroll
          for (int g = 0; g < kGates; ++g) dh[r][e] += sums[e / 2][g][2 * r + e % 2];
        }
      if (!kReadsAhead && t > 0) fetch(t - 1, fetched);
      if constexpr (kBuffers == 1) block.sync();
    }
    part.write(static_cast<T*>(a.dh0), hidden, dh);
    if constexpr (Cell::kCellState) part.write(static_cast<T*>(a.dc0), hidden, dc);
    float* const to = a.bias_grads + (block.index() * (kTileRows / 2) + owner.row(0)) * 4 * hidden + part.unit();
#pragma unroll
    for (int g = 0; g < 4; ++g)
#pragma unroll
      for (int e = 0; e < kUnits; ++e)
        if (part.inside(e)) to[g * hidden + e] = bias_grads[g][e];
  }
};

}  // namespace ak::cuda
