// The encoder layer's FFN on a group of tokens, forward and backward, a few hidden panels at a time: hidden values live in cache
// and never become a tensor. Hidden columns are held by panels [tokens, kPanel], which is how the products read them packed.
#pragma once

#include "../common/gemm.h"
#include "../common/philox.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kHiddenPanels = kRegisterBytes == 64 ? 4 : 8;  // of a chunk

inline int64_t padded_rows(int64_t n) { return round_up(n, kTileRows); }

// Inverted dropout of columns [begin, begin + n) of a row that has `columns` in all; begin is a multiple of four.
template <class T>
inline void drop_columns(const Dropout& drop, int64_t stream, int64_t row, int64_t columns, int64_t begin, int64_t n, T* values) {
  constexpr int lanes = 8;
  const uint64_t threshold = static_cast<uint64_t>(std::nearbyint(drop.p * 4294967296.0));
  const T scale = static_cast<T>(drop.p < 1 ? 1 / (1 - drop.p) : 0);
  const uint64_t first = (static_cast<uint64_t>(stream) << 48) + static_cast<uint64_t>(row * ((columns + 3) / 4) + begin / 4);
  for (int64_t j = 0; j < n; j += 4 * lanes) {
    uint32_t words[4][lanes];
    Philox{drop.seed}.draw<lanes>(first + static_cast<uint64_t>(j / 4), words);
    for (int64_t k = 0; k < std::min<int64_t>(n - j, 4 * lanes); ++k)
      values[j + k] *= words[k % 4][k / 4] >= threshold ? scale : T{0};
  }
}

// Weights packed once a call, and the group's place in the batch for dropout.
template <class T>
struct Ffn {
  int64_t width, hidden;
  const T *up, *bias1;       // W1^T [d, f] by panels; b1 padded to whole panels
  const T *down;             // W2^T [f, d] by panels
  const T *up_back, *down_back;  // W1 [f, d], W2 [d, f] by panels; backward alone
  Dropout drop;

  int64_t panels() const { return (hidden + kPanel<T> - 1) / kPanel<T>; }
  int64_t depth_of(int64_t panel) const { return std::min(kPanel<T>, hidden - panel * kPanel<T>); }
};

// Calls f(rows from, tile) for tiles of kTileRows over padded rows.
template <class F>
inline void for_tiles(int64_t padded, const F& f) {
  for (int64_t i = 0; i < padded; i += kTileRows) f(i);
}

// hidden [padded, kPanel] = dropout(relu(a W1^T + b1)), one panel of it.
template <class T>
inline void hidden_panel(const Ffn<T>& ffn, int64_t panel, int64_t token, int64_t rows, const T* a, T* hidden) {
  const int64_t d = ffn.width;
  Vec<T> bias[kTileVectors];
  for (int v = 0; v < kTileVectors; ++v) bias[v] = load<Vec<T>>(ffn.bias1 + panel * kPanel<T> + v * kLanes<T>);
  for_tiles(padded_rows(rows), [&](int64_t i) {
    Accumulator<T, kTileRows> acc;
    acc.zero();
    acc.multiply({a + i * d, d, 1}, ffn.up + panel * d * kPanel<T>, d);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r)
      for (int v = 0; v < kTileVectors; ++v) {
        const Vec<T> h = acc.sum[r][v] + bias[v];
        acc.sum[r][v] = h <= 0 ? Vec<T>{} : h;  // a NaN stays
      }
    acc.store_to(hidden + i * kPanel<T>, kPanel<T>);
  });
  if (ffn.drop.p > 0)
    for (int64_t i = 0; i < rows; ++i)
      drop_columns(ffn.drop, 2, token + i, ffn.hidden, panel * kPanel<T>, ffn.depth_of(panel), hidden + i * kPanel<T>);
}

// out [padded, stride] (+)= the chunk's panels times a weight packed [f, d].
template <class T>
inline void times_chunk(const Ffn<T>& ffn, int64_t first, int64_t last, int64_t padded, const T* panels, const T* weight, T* out,
                        int64_t stride) {
  for (int64_t q = 0; q * kPanel<T> < ffn.width; ++q)
    for_tiles(padded, [&](int64_t i) {
      Accumulator<T, kTileRows> acc;
      acc.zero();
      for (int64_t p = first; p < last; ++p)
        acc.multiply({panels + (p - first) * padded * kPanel<T> + i * kPanel<T>, kPanel<T>, 1},
                     weight + (q * ffn.hidden + p * kPanel<T>) * kPanel<T>, ffn.depth_of(p));
      T* c = out + i * stride + q * kPanel<T>;
      if (first == 0)
        acc.store_to(c, stride);
      else
        acc.add_to(c, stride);
    });
}

// out [padded, round_up(d, kPanel)] = relu(a W1^T + b1) W2^T for `rows` tokens from `token` on; a [padded, d].
template <class T>
inline void ffn_forward(const Ffn<T>& ffn, int64_t token, int64_t rows, const T* a, T* out, T* hidden) {
  const int64_t padded = padded_rows(rows), size = padded * kPanel<T>, stride = round_up(ffn.width, kPanel<T>);
  if (ffn.hidden == 0) std::fill(out, out + padded * stride, T{0});  // else the first chunk writes it
  for (int64_t first = 0; first < ffn.panels(); first += kHiddenPanels) {
    const int64_t last = std::min(first + kHiddenPanels, ffn.panels());
    for (int64_t p = first; p < last; ++p) hidden_panel(ffn, p, token, rows, a, hidden + (p - first) * size);
    times_chunk(ffn, first, last, padded, hidden, ffn.down, out, stride);
  }
}

// Sums over tokens: dW1^T and dW2 by panels [panel][d][kPanel], db1 by whole panels.
template <class T>
struct FfnSums {
  T *weight1, *weight2, *bias1;
};

// da [padded, round_up(d, kPanel)] = the gradient of a from g [padded, d], that of the FFN's output; sums are added to.
// a_tiles and g_tiles are a and g as pack_row lays them out by kTileRows columns; hidden has room for two chunks.
template <class T>
inline void ffn_backward(const Ffn<T>& ffn, int64_t token, int64_t rows, const T* a, const T* g, const T* a_tiles, const T* g_tiles,
                         T* da, const FfnSums<T>& sums, T* hidden) {
  const int64_t d = ffn.width, padded = padded_rows(rows), size = padded * kPanel<T>, stride = round_up(d, kPanel<T>);
  const T scale = static_cast<T>(ffn.drop.p > 0 && ffn.drop.p < 1 ? 1 / (1 - ffn.drop.p) : 1);
  T* dhidden = hidden + kHiddenPanels * size;
  if (ffn.hidden == 0) std::fill(da, da + padded * stride, T{0});
  for (int64_t first = 0; first < ffn.panels(); first += kHiddenPanels) {
    const int64_t last = std::min(first + kHiddenPanels, ffn.panels());
    for (int64_t p = first; p < last; ++p) {
      T *h = hidden + (p - first) * size, *dh = dhidden + (p - first) * size;
      hidden_panel(ffn, p, token, rows, a, h);
      Vec<T> bias[kTileVectors];
      for (int v = 0; v < kTileVectors; ++v) bias[v] = load<Vec<T>>(sums.bias1 + p * kPanel<T> + v * kLanes<T>);
      for_tiles(padded, [&](int64_t i) {
        Accumulator<T, kTileRows> acc;
        acc.zero();
        acc.multiply({g + i * d, d, 1}, ffn.down_back + p * d * kPanel<T>, d);
        const T* at = h + i * kPanel<T>;
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r)
          for (int v = 0; v < kTileVectors; ++v) {
            const Vec<T> value = load<Vec<T>>(at + r * kPanel<T> + v * kLanes<T>);
            acc.sum[r][v] = value <= 0 ? Vec<T>{} : acc.sum[r][v] * scale;
            bias[v] += acc.sum[r][v];  // rows beyond the last have g = 0
          }
        acc.store_to(dh + i * kPanel<T>, kPanel<T>);
      });
      for (int v = 0; v < kTileVectors; ++v) store(sums.bias1 + p * kPanel<T> + v * kLanes<T>, bias[v]);
      for (int64_t j = 0; j < d; j += kTileRows) {
        const int64_t n = std::min<int64_t>(kTileRows, d - j);
        tile_of<T>(n, {a_tiles + j * rows, 1, kTileRows}, dh, kPanel<T>, rows, sums.weight1 + (p * d + j) * kPanel<T>, kPanel<T>,
                   kPanel<T>, true);
        tile_of<T>(n, {g_tiles + j * rows, 1, kTileRows}, h, kPanel<T>, rows, sums.weight2 + (p * d + j) * kPanel<T>, kPanel<T>,
                   kPanel<T>, true);
      }
    }
    times_chunk(ffn, first, last, padded, dhidden, ffn.up_back, da, stride);
  }
}

}  // namespace
}  // namespace ak::AK_ISA
