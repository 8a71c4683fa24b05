// The recurrent weights of a block, resident from the first step to the last, and the product of a tile of rows with them.
//
// Forward and backward have the same product: for each gate, c[gate] [16, H] = a [16, H] times a square matrix of the gate. Forward, a
// is h, the same for all gates, and the matrix W_hh[gate]^T; backward, a is the gate's gradient and the matrix W_hh[gate]. A warp
// owns 8 * tiles units of all gates, so that what a cell needs meets in the registers of one thread.
#pragma once

#include "../common/host_device.h"
#include "block.h"
#include "recurrent.h"

namespace ak::cuda {

// Who a thread is: with g = lane / 4 and q = lane % 4 it holds rows g and g + 8 of the tile, and 2 * tiles neighbouring units, of which
// columns 2q and 2q + 1 of tile i are the units 2i and 2i + 1.
template <int tiles>
struct Owner {
  static constexpr int kUnits = 2 * tiles;
  int warp, lane;
  AK_DEVICE explicit Owner(int thread) : warp(thread / 32), lane(thread % 32) {}
  AK_DEVICE int row(int half) const { return lane / 4 + 8 * half; }
  AK_DEVICE int unit() const { return 8 * tiles * warp + kUnits * (lane % 4); }
  AK_DEVICE int unit_of_column(int tile, int column) const { return 8 * tiles * warp + kUnits * (column / 2) + 2 * tile + column % 2; }
};

// A thread's part of a step's [B, columns]: two rows of `units` neighbours. Rows beyond the batch read its last row, units beyond the
// hidden size the last ones, so that reads ask nothing; neither is written. A place is a pointer that the whole block shares and 32
// bits of the thread's own: 64 bits for each array of a step would take the registers that the weights need. `vectors`: the hidden
// size is a multiple of 4 and every row begins where a vector may. `whole`: the hidden size where the compiler knows it, else 0.
template <int units, bool vectors, int whole>
class Part {
 public:
  AK_DEVICE Part(const Block& block, int64_t batch, int64_t hidden)
      : first_(block.index() * kTileRows), hidden_(static_cast<int>(hidden)), unit_(Owner<units / 2>(block.thread()).unit()) {
    const int row = Owner<units / 2>(block.thread()).row(0);
    const int last = static_cast<int>(batch - first_ < kTileRows ? batch - first_ : kTileRows) - 1;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      live_[r] = row + 8 * r <= last;
      row_[r] = live_[r] ? row + 8 * r : last;
    }
  }
  AK_DEVICE int unit() const { return unit_; }
  AK_DEVICE bool live(int r) const { return live_[r]; }
  AK_DEVICE bool inside(int e) const { return whole > 0 || (vectors ? unit_ : unit_ + e) < hidden_; }

  // Of row r of a matrix whose rows are `stride` apart, the units from `column` on.
  template <class T>
  AK_DEVICE Pack<T, units> read(int r, const T* data, int64_t stride, int column = 0) const {
    const T* const from = data + first_ * stride + column;
    if constexpr (vectors) {
      return *reinterpret_cast<const Pack<T, units>*>(from + at(r, stride, last_of(unknown(unit_), units)));
    } else {
      Pack<T, units> found;
      const int row = unknown(row_[r] * static_cast<int>(stride)), unit = unknown(unit_);
#pragma unroll
      for (int e = 0; e < units; ++e) found.v[e] = from[row + min_of(unit + e, hidden_ - 1)];
      return found;
    }
  }
  template <class T>
  AK_DEVICE void write(int r, T* data, int64_t stride, int column, const float (&x)[units]) const {
    T* const to = data + first_ * stride + column;
    if constexpr (vectors) {
      if (live_[r] && inside(0)) *reinterpret_cast<Words<T, units>*>(to + at(r, stride, unknown(unit_))) = words_of<T>(x);
    } else {
      T* const place = to + at(r, stride, unknown(unit_));
#pragma unroll
      for (int e = 0; e < units; ++e)
        if (live_[r] && inside(e)) place[e] = rounded<T>(x[e]);
    }
  }

  // Of states [B, H]: zero where there are none, and beyond the hidden size.
  template <class T>
  AK_DEVICE void read_state(const T* data, float (&to)[2][units]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Pack<T, units> found;
      if (data != nullptr) found = read(r, data, whole > 0 ? whole : hidden_);
#pragma unroll
      for (int e = 0; e < units; ++e) to[r][e] = data != nullptr && inside(e) ? to_float(found.v[e]) : 0.0f;
    }
  }
  template <class T>
  AK_DEVICE void write(T* data, int64_t stride, const float (&x)[2][units]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) write(r, data, stride, 0, x[r]);
  }
  // Brings nearer what `read` will read.
  template <class T>
  AK_DEVICE void prefetch(const Block& block, const T* data, int64_t stride, int column = 0) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) block.prefetch(data + first_ * stride + column + at(r, stride, last_of(unit_, 1)));
  }

 private:
  AK_DEVICE static int min_of(int a, int b) { return a < b ? a : b; }
  AK_DEVICE int last_of(int unit, int count) const { return whole > 0 ? unit : min_of(unit, hidden_ - count); }
  // The same number, of which the compiler knows nothing: what is made of it is made again where it is used, and takes no register
  // from step to step.
  AK_DEVICE static int unknown(int number) {
#ifdef __CUDACC__
    if constexpr (whole == 0 || units > 2) asm volatile("" : "+r"(number));
#endif
    return number;
  }
  AK_DEVICE int at(int r, int64_t stride, int unit) const { return row_[r] * static_cast<int>(stride) + unit; }
  const int64_t first_;
  const int hidden_, unit_;
  int row_[2];
  bool live_[2];
};

// W_hh as the product sees it: element (depth, unit) of a gate's matrix, zero beyond the hidden size.
template <class T, bool transposed>
struct GateMatrices {
  const T* weight;  // [GH, H]
  int hidden;
  AK_DEVICE float at(int gate, int depth, int unit) const {
    if (depth >= hidden || unit >= hidden) return 0.0f;
    const int row = transposed ? unit : depth, column = transposed ? depth : unit;
    return to_float(weight[(gate * hidden + row) * hidden + column]);
  }
};

// A row of `count` words in shared memory, padded so that 8 rows lie in different banks.
AK_HOST_DEVICE constexpr int padded_words(int count) { return (count + 7) / 8 * 8 + 4; }

// By tensor cores. The weights are fragments: of each gate the first `in_registers` of 8 words of depth in registers, the rest in
// shared memory in the order in which lanes take them. `buffers`: tiles of the gates' gradients that take turns, one or two; `blocks`:
// how many share a multiprocessor when the batch is large, which bounds the registers of a thread.
template <Product product, int gates, int extent, int tiles, int in_registers, int buffers, int blocks>
class TensorProduct {
 public:
  using T = typename Operand<product>::Storage;
  static constexpr int kTiles = tiles, kThreads = extent / tiles * 4, kBuffers = buffers, kBlocks = blocks;
  static constexpr int kGateWords = extent / Operand<product>::kPerWord;  // of a row of a gate's left operand

  static int64_t weight_words(int64_t) { return int64_t{kThreads} * tiles * gates * kInShared * 2; }

  template <class Matrices>
  AK_DEVICE TensorProduct(const Block& block, uint32_t* memory, Matrices matrices)
      : block_(block), memory_(memory + block.thread() / 32 * (tiles * gates * kInShared * 64) + block.thread() % 32 * 2) {
    const Owner<tiles> owner(block.thread());
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int gate = 0; gate < gates; ++gate)
#pragma unroll
        for (int first = 0; first < kSteps; first += 4) {
          // In stages: all at once, addresses and halves that wait for their other half would spill.
          matrices.weight = block.settled(matrices.weight);
#pragma unroll
          for (int k = first; k < first + 4 && k < kSteps; ++k) {
            uint32_t* const to = k < in_registers ? registers_[tile][gate][k] : fragment(tile, gate, k);
            load(matrices, tile, gate, k, owner, to);
          }
#pragma unroll
          for (int k = first; k < first + 4 && k < in_registers; ++k)
#pragma unroll
            for (int i = 0; i < 2; ++i) registers_[tile][gate][k][i] = block.settled(registers_[tile][gate][k][i]);
        }
  }

  // The thread's units of a row of the left operand.
  AK_DEVICE static void put(uint32_t* row, int unit, const float (&x)[2 * tiles]) {
    constexpr int per = Operand<product>::kPerWord;
    Pack<uint32_t, 2 * tiles / per> words;
#pragma unroll
    for (int i = 0; i < 2 * tiles / per; ++i) words.v[i] = Operand<product>::word(x + i * per);
    *reinterpret_cast<Pack<uint32_t, 2 * tiles / per>*>(row + unit / per) = words;
  }

  // c += a times the gates' matrices; a: [16][stride] words, a gate's at `gate_words` after the one before (0: the same for all).
  template <int stride, int gate_words>
  AK_DEVICE void add(const uint32_t* a, float (&c)[tiles][gates][4]) const {
    const int lane = block_.thread() % 32;
    const uint32_t* const row = a + lane % 16 * stride + lane / 16 * 4;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t words[4];
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) {
        if (gate == 0 || gate_words != 0) block_.load_matrices(row + 8 * k + gate * gate_words, words);
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
          if (k < in_registers) {
            block_.template multiply_add<product>(c[tile][gate], words, registers_[tile][gate][k]);
          } else {
            const auto b = *reinterpret_cast<const Pack<uint32_t, 2>*>(fragment(tile, gate, k));
            block_.template multiply_add<product>(c[tile][gate], words, b.v);
          }
        }
      }
    }
  }

 private:
  static constexpr int kSteps = kGateWords / 8, kInShared = kSteps - in_registers;

  // The words of depth 8k and on that a lane holds of a tile's right operand.
  template <class Matrices>
  AK_DEVICE static void load(const Matrices& matrices, int tile, int gate, int k, const Owner<tiles>& owner, uint32_t* to) {
    constexpr int per = Operand<product>::kPerWord;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float values[per];
#pragma unroll
      for (int e = 0; e < per; ++e)
        values[e] = matrices.at(gate, (8 * k + 4 * i + owner.lane % 4) * per + e, owner.unit_of_column(tile, owner.lane / 4));
      to[i] = Operand<product>::word(values);
    }
  }

  AK_DEVICE uint32_t* fragment(int tile, int gate, int k) const {
    return memory_ + ((tile * gates + gate) * kInShared + k - in_registers) * 64;
  }

  const Block block_;
  uint32_t* const memory_;
  uint32_t registers_[tiles][gates][in_registers > 0 ? in_registers : 1][2];
};

// By plain float arithmetic. The weights are in shared memory, a unit's depth in a row; a thread reads four of depth at once.
template <int gates, int extent, int tiles>
class PlainProduct {
 public:
  using T = float;
  static constexpr int kTiles = tiles, kThreads = extent / tiles * 4, kBuffers = 1, kBlocks = 1;
  static constexpr int kGateWords = extent;

  static int64_t weight_words(int64_t hidden) { return gates * hidden * padded_words(static_cast<int>(hidden)); }

  template <class Matrices>
  AK_DEVICE PlainProduct(const Block& block, uint32_t* memory, Matrices matrices)
      : hidden_(matrices.hidden), stride_(padded_words(hidden_)), memory_(reinterpret_cast<float*>(memory)), owner_(block.thread()) {
    for (int i = block.thread(); i < gates * hidden_ * stride_; i += kThreads)
      memory_[i] = matrices.at(i / stride_ / hidden_, i % stride_, i / stride_ % hidden_);
  }

  AK_DEVICE static void put(uint32_t* row, int unit, const float (&x)[2 * tiles]) {
    *reinterpret_cast<Words<float, 2 * tiles>*>(row + unit) = words_of<float>(x);
  }

  template <int stride, int gate_words>
  AK_DEVICE void add(const uint32_t* a, float (&c)[tiles][gates][4]) const {
    using Four = Pack<float, 4>;
    const float* const row = reinterpret_cast<const float*>(a) + owner_.row(0) * stride;
    // Units beyond the hidden size read the last one's weights; nobody reads their sums.
    const float* weights[2 * tiles];
#pragma unroll
    for (int e = 0; e < 2 * tiles; ++e) weights[e] = memory_ + (owner_.unit() + e < hidden_ ? owner_.unit() + e : hidden_ - 1) * stride_;
#pragma unroll 1
    for (int k = 0; k < hidden_; k += 4) {
      Four x[2];
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) {
        if (gate == 0 || gate_words != 0)
#pragma unroll
          for (int r = 0; r < 2; ++r) x[r] = *reinterpret_cast<const Four*>(row + 8 * r * stride + k + gate * gate_words);
#pragma unroll
        for (int e = 0; e < 2 * tiles; ++e) {
          const Four w = *reinterpret_cast<const Four*>(weights[e] + gate * hidden_ * stride_ + k);
#pragma unroll
          for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) c[e / 2][gate][2 * r + e % 2] += x[r].v[i] * w.v[i];
        }
      }
    }
  }

 private:
  const int hidden_, stride_;
  float* const memory_;
  const Owner<tiles> owner_;
};

}  // namespace ak::cuda
