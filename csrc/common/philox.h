// Philox 4x32-10 (Salmon et al., SC 2011): the counter-based generator behind dropout inside a kernel. The bits of an element depend
// on the seed and the element's index alone, so backward draws them again and any number of threads draws the same. Twin of
// src/alphakernels/ops/_random.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "isa.h"

namespace ak::AK_ISA {
namespace {

struct Philox {
  uint64_t seed;

  // words[w][i]: word w of counter first + i, for `lanes` counters.
  template <int lanes>
  AK_HOST_DEVICE void draw(uint64_t first, uint32_t (&words)[4][lanes]) const {
    uint32_t c0[lanes], c1[lanes], c2[lanes] = {}, c3[lanes] = {};
    for (int i = 0; i < lanes; ++i) {
      c0[i] = static_cast<uint32_t>(first + i);
      c1[i] = static_cast<uint32_t>((first + i) >> 32);
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < lanes; ++i) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c0[i], p1 = uint64_t{0xCD9E8D57} * c2[i];
        c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
        c1[i] = static_cast<uint32_t>(p1);
        c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
        c3[i] = static_cast<uint32_t>(p0);
      }
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    for (int i = 0; i < lanes; ++i) {
      words[0][i] = c0[i];
      words[1][i] = c1[i];
      words[2][i] = c2[i];
      words[3][i] = c3[i];
    }
  }
};

// Inverted dropout with probability p; p = 0 keeps everything.
struct Dropout {
  uint64_t seed;
  double p;

  // An element is kept, times scale(), where its word is at least threshold(). Four columns of a row take the words of one counter;
  // a row begins at first().
  uint64_t threshold() const { return static_cast<uint64_t>(std::nearbyint(p * 4294967296.0)); }
  double scale() const { return p < 1 ? 1 / (1 - p) : 0; }
  AK_HOST_DEVICE static int64_t counters(int64_t columns) { return (columns + 3) / 4; }
  AK_HOST_DEVICE static uint64_t first(int64_t stream, int64_t row, int64_t columns) {
    return (static_cast<uint64_t>(stream) << 48) + static_cast<uint64_t>(row * counters(columns));
  }

  // Multiplies `columns` elements of row `row` of stream `stream` by 0 or 1 / (1 - p).
  template <class T>
  void apply(int64_t stream, int64_t row, int64_t columns, T* values) const {
    if (p <= 0) return;
    constexpr int lanes = 16;
    const uint64_t least = threshold(), begin = first(stream, row, columns);
    const T factor = static_cast<T>(scale());
    for (int64_t c = 0; c < counters(columns); c += lanes) {
      uint32_t words[4][lanes];
      Philox{seed}.draw<lanes>(begin + static_cast<uint64_t>(c), words);
      for (int64_t j = 4 * c; j < columns && j < 4 * (c + lanes); ++j) {
        const uint32_t word = words[j % 4][j / 4 - c];
        values[j] *= word >= least ? factor : T{0};
      }
    }
  }
};

}  // namespace
}  // namespace ak::AK_ISA
