// One step of one row of the state-frequency memory: S [F, 2, H], the real and imaginary part of every unit's amplitude at every
// frequency. Lanes run over the hidden units, so no sum over frequencies crosses lanes; a block of units stays in registers while
// the frequencies go by.
#pragma once

#include <type_traits>

#include "../common/gemm.h"
#include "../common/simd.h"
#include "sfm.h"

namespace ak::AK_ISA {
namespace {

// How a tile is laid out: units and the columns of the gates padded to whole registers with zeros, which all arithmetic leaves zero.
template <class T>
struct SfmLayout {
  int64_t units;   // padded H
  int64_t gates;   // columns of the gates: 4 * units + F, padded
  int64_t inputs;  // rows of the weights: [hidden state: units | x | 1], the last for the bias
  int64_t state;   // elements of S of one row

  explicit SfmLayout(const SfmSizes& s)
      : units(round_up(s.hidden, kLanes<T>)), gates(round_up(4 * units + s.frequencies, kLanes<T>)), inputs(units + s.features + 1),
        state(2 * s.frequencies * units) {}
};

// Registers of hidden units taken together: as many as leave room for what they need in each of the loops.
#if defined(__AVX512F__)
constexpr int64_t kUnitBlock = 4;
#else
constexpr int64_t kUnitBlock = 2;
#endif

// Calls f(constant block size, first unit) over `units` units, in blocks of kUnitBlock registers and then of one.
template <class T, class F>
inline void for_each_unit_block(int64_t units, const F& f) {
  int64_t h = 0;
  for (; h + kUnitBlock * kLanes<T> <= units; h += kUnitBlock * kLanes<T>) f(std::integral_constant<int64_t, kUnitBlock>{}, h);
  for (; h < units; h += kLanes<T>) f(std::integral_constant<int64_t, 1>{}, h);
}

// torch's hardsigmoid. A NaN stays one: comparisons with it are false.
template <class P, class T>
inline P hard_sigmoid(P z) {
  return minimum<P>(splat<P, T>(1), maximum<P>(splat<P, T>(0), z * static_cast<T>(1.0 / 6) + static_cast<T>(0.5)));
}

// The gradient of z where the gate is `gate` and its own gradient is `grad`: nothing passes where the gate is shut or wide open.
template <class P, class T>
inline P through_hard_sigmoid(P gate, P grad) {
  const P zero = {};
  const P open = gate > zero ? grad : zero;
  return (gate < splat<P, T>(1) ? open : zero) * static_cast<T>(1.0 / 6);
}

// The four gates of hidden units and the frequency gate, from their linear parts [gates] in place: i, s, tanh c, o, f.
template <class T>
inline void open_gates(const SfmLayout<T>& lay, T* z) {
  using P = Vec<T>;
  for (int64_t j = 0; j < lay.gates; j += kLanes<T>) {
    const P v = load<P>(z + j);
    const bool cell = j >= 2 * lay.units && j < 3 * lay.units;
    store(z + j, cell ? tanh<P, T>(v) : hard_sigmoid<P, T>(v));
  }
}

// S <- s f S + i tanh(c) wave from `before` to `after` (which may be the same); what(block, first unit, A) is handed the power
// sum_k u_k (S_re^2 + S_im^2) where `amplitude` is given.
template <class T, bool kAmplitude, class Use>
inline void advance(const SfmSizes& sizes, const SfmLayout<T>& lay, const T* gates, const T* wave, const T* amplitude,
                    const T* before, T* after, const Use& use) {
  using P = Vec<T>;
  const int64_t units = lay.units, n = sizes.frequencies;
  const T* f = gates + 4 * units;
  for_each_unit_block<T>(units, [&](auto size, int64_t first) {
    constexpr int64_t block = size.value;
    P s[block], c[block], a[block];
#pragma GCC unroll 4
    for (int64_t j = 0; j < block; ++j) {
      const T* g = gates + first + j * kLanes<T>;
      s[j] = load<P>(g + units);
      c[j] = load<P>(g) * load<P>(g + 2 * units);
      a[j] = P{};
    }
    for (int64_t k = 0; k < n; ++k) {
      const T* from = before + 2 * k * units + first;
      T* to = after + 2 * k * units + first;
      const P keep = splat<P>(f[k]), cosine = splat<P>(wave[k]), sine = splat<P>(wave[n + k]);
#pragma GCC unroll 4
      for (int64_t j = 0; j < block; ++j) {
        const int64_t at = j * kLanes<T>;
        const P kept = s[j] * keep;
        const P re = kept * load<P>(from + at) + c[j] * cosine;
        const P im = kept * load<P>(from + units + at) + c[j] * sine;
        store(to + at, re);
        store(to + units + at, im);
        if constexpr (kAmplitude) a[j] += amplitude[k] * (re * re + im * im);
      }
    }
    if constexpr (kAmplitude)
#pragma GCC unroll 4
      for (int64_t j = 0; j < block; ++j) use(first + j * kLanes<T>, a[j]);
  });
}

// What one row's step back reads besides S, and what it adds to.
template <class T>
struct StepBack {
  const T *gates, *a;     // of the step: [gates] opened, [units] tanh of the amplitude
  const T *wave, *amplitude;
  const T *before, *after;  // S
  const T* grad;            // of the hidden state after the step
  T* dstate;                // of S after the step; becomes that of S before it
  T* damplitude;            // [F, lanes], sums to the gradient of u
  T* dbias;                 // [units]
  T* dfrequency;            // [F, lanes], scratch
  T* dgates;                // may be `gates`: the gradients of the linear parts
};

template <class T>
inline void step_back(const SfmSizes& sizes, const SfmLayout<T>& lay, const StepBack<T>& at) {
  using P = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t units = lay.units, n = sizes.frequencies;
  const T* f = at.gates + 4 * units;
  for_each_unit_block<T>(units, [&](auto size, int64_t first) {
    constexpr int64_t block = size.value;
    P s[block], dpower[block], ds[block], dc[block];
#pragma GCC unroll 4
    for (int64_t j = 0; j < block; ++j) {
      const int64_t h = first + j * lanes;
      const P grad = load<P>(at.grad + h), a = load<P>(at.a + h), o = load<P>(at.gates + 3 * units + h);
      dpower[j] = grad * o * (static_cast<T>(1) - a * a);
      store(at.dbias + h, static_cast<P>(load<P>(at.dbias + h) + dpower[j]));
      store(at.dgates + 3 * units + h, through_hard_sigmoid<P, T>(o, grad * a));
      s[j] = load<P>(at.gates + units + h);
      ds[j] = dc[j] = P{};
    }
    for (int64_t k = 0; k < n; ++k) {
      const int64_t row = 2 * k * units + first;
      const P keep = splat<P>(f[k]), cosine = splat<P>(at.wave[k]), sine = splat<P>(at.wave[n + k]);
      const P weight = splat<P>(2 * at.amplitude[k]);
      P du = {}, df = {};
#pragma GCC unroll 4
      for (int64_t j = 0; j < block; ++j) {
        const int64_t re = row + j * lanes, im = re + units;
        const P re_after = load<P>(at.after + re), im_after = load<P>(at.after + im);
        du += dpower[j] * (re_after * re_after + im_after * im_after);
        const P slope = dpower[j] * weight;
        const P dre = load<P>(at.dstate + re) + slope * re_after, dim = load<P>(at.dstate + im) + slope * im_after;
        dc[j] += dre * cosine + dim * sine;
        const P dkept = dre * load<P>(at.before + re) + dim * load<P>(at.before + im);
        ds[j] += dkept * keep;
        df += dkept * s[j];
        const P kept = s[j] * keep;
        store(at.dstate + re, static_cast<P>(dre * kept));
        store(at.dstate + im, static_cast<P>(dim * kept));
      }
      store(at.damplitude + k * lanes, static_cast<P>(load<P>(at.damplitude + k * lanes) + du));
      store(at.dfrequency + k * lanes, first > 0 ? static_cast<P>(load<P>(at.dfrequency + k * lanes) + df) : df);
    }
#pragma GCC unroll 4
    for (int64_t j = 0; j < block; ++j) {
      const int64_t h = first + j * lanes;
      const P i = load<P>(at.gates + h), c = load<P>(at.gates + 2 * units + h);
      store(at.dgates + h, through_hard_sigmoid<P, T>(i, dc[j] * c));
      store(at.dgates + units + h, through_hard_sigmoid<P, T>(s[j], ds[j]));
      store(at.dgates + 2 * units + h, static_cast<P>(dc[j] * i * (static_cast<T>(1) - c * c)));
    }
  });
  T* dfrequency = at.dgates + 4 * units;
  for (int64_t k = 0; k < n; ++k) dfrequency[k] = through_hard_sigmoid<T, T>(f[k], sum_lanes<T>(load<P>(at.dfrequency + k * lanes)));
}

}  // namespace
}  // namespace ak::AK_ISA
