#include "sfm.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../common/parallel.h"
#include "../common/simd.h"
#include "../common/tile_gemm.h"
#include "../common/workspace.h"
#include "sfm_cell.h"

namespace ak::AK_ISA {
namespace {

// Rows that go through all steps together: enough to read the weights once for many products, few enough that their S stays in
// the second-level cache. The cut depends on nothing else, so that no result depends on the number of threads.
constexpr int64_t kForwardTile = 16, kBackwardTile = 8;
// Steps between two checkpoints of S in the backward pass.
constexpr int64_t kSegment = 4;
// The backward pass sums the weights' gradients in this many pieces, and those in order.
constexpr int64_t kGroups = 32;

inline int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// Weights as the tiles want them: padded, in panels. `forward` is [inputs, gates] (row order: hidden state, x, bias), `backward`
// its transpose [gates, hidden state | x].
template <class T>
struct SfmWeights {
  SfmLayout<T> lay;
  int64_t columns;  // of `backward`
  Workspace<T> work;
  T *forward, *backward, *bias_a;

  SfmWeights(const SfmSizes& s, const SfmInputs<T>& in, bool with_backward, bool with_x)
      : lay(s), columns(lay.units + (with_x ? round_up(s.features, kLanes<T>) : 0)),
        work(Workspace<T>::padded(lay.inputs * lay.gates) + Workspace<T>::padded(lay.gates * columns) + lay.units),
        forward(work.take(lay.inputs * lay.gates)), backward(work.take(lay.gates * columns)), bias_a(work.take(lay.units)) {
    const auto column_of = [&](int64_t j) {  // in the caller's weights; -1: padding
      const int64_t gate = std::min<int64_t>(j / lay.units, 4), k = j - gate * lay.units;
      return k < (gate < 4 ? s.hidden : s.frequencies) ? gate * s.hidden + k : -1;
    };
    const int64_t width = 4 * s.hidden + s.frequencies;
    const auto weight = [&](int64_t row, int64_t j) -> T {
      const int64_t column = column_of(j);
      if (column < 0 || (row >= s.hidden && row < lay.units) || row >= lay.inputs) return 0;
      if (row < s.hidden) return in.weight_h[row * width + column];
      return row < lay.units + s.features ? in.weight_x[(row - lay.units) * width + column] : in.bias[column];
    };
    pack_panels(forward, lay.inputs, lay.gates / kLanes<T>, weight);
    if (with_backward)
      pack_panels(backward, lay.gates, columns / kLanes<T>,
                  [&](int64_t j, int64_t row) { return row < lay.units + s.features ? weight(row, j) : T(0); });
    for (int64_t h = 0; h < lay.units; ++h) bias_a[h] = h < s.hidden ? in.bias_a[h] : T(0);
  }

  Right<T> gates() const { return {forward, 0, lay.inputs}; }
  Right<T> transposed() const { return {backward, 0, lay.gates}; }
};

// The parts of a gates' input row [hidden state | x | 1 | padding] that do not come from the step before.
template <class T>
void put_features(const SfmSizes& s, const SfmLayout<T>& lay, const SfmInputs<T>& in, int64_t row, int64_t step, T* input) {
  const T* x = in.x + row * in.x_row + step * in.x_step;
  for (int64_t d = 0; d < s.features; ++d) input[lay.units + d] = x[d * in.x_feature];
  input[lay.units + s.features] = 1;
}

// The hidden state as it enters the gates.
template <class T>
void put_state(const SfmSizes& s, const SfmInputs<T>& in, int64_t row, const T* h, T* input) {
  for (int64_t j = 0; j < s.hidden; ++j) input[j] = in.mask == nullptr ? h[j] : h[j] * in.mask[row * s.hidden + j];
}

}  // namespace

template <class T>
void sfm(const SfmSizes& s, const SfmInputs<T>& in, T* out, T* hidden) {
  using W = Workspace<T>;
  const SfmWeights<T> weights(s, in, false, false);
  const SfmLayout<T>& lay = weights.lay;
  const int64_t inputs = kForwardTile * lay.input_stride, gates = kForwardTile * lay.gates, state = kForwardTile * lay.state;
  parallel_for(ceil_div(s.batch, kForwardTile), 1, [&](int64_t first, int64_t last) {
    W work(W::padded(inputs) + W::padded(gates) + W::padded(state) + lay.units);
    T *input = work.take(inputs), *z = work.take(gates), *S = work.take(state), *h = work.take(lay.units);
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kForwardTile, rows = std::min(kForwardTile, s.batch - begin);
      std::fill_n(input, inputs, T(0));
      std::fill_n(S, state, T(0));
      for (int64_t t = 0; t < s.steps; ++t) {
        for (int64_t r = 0; r < rows; ++r) put_features(s, lay, in, begin + r, t, input + r * lay.input_stride);
        tile_gemm<T, true, false>(round_up(rows, kGemmRows), lay.gates / kLanes<T>, lay.inputs, input, lay.input_stride,
                                  weights.gates(), z, lay.gates);
        for (int64_t r = 0; r < rows; ++r) {
          T *gate = z + r * lay.gates, *memory = S + r * lay.state;
          open_gates(lay, gate);
          advance<T, true>(s, lay, gate, in.waves + 2 * t * s.frequencies, in.weight_a, memory, memory,
                           [&](int64_t j, Vec<T> power) {
                             const Vec<T> a = tanh<Vec<T>, T>(power + load<Vec<T>>(weights.bias_a + j));
                             store(h + j, static_cast<Vec<T>>(load<Vec<T>>(gate + 3 * lay.units + j) * a));
                           });
          put_state(s, in, begin + r, h, input + r * lay.input_stride);
          if (hidden != nullptr) std::memcpy(hidden + ((begin + r) * s.steps + t) * s.hidden, h, s.hidden * sizeof(T));
          if (t + 1 == s.steps) std::memcpy(out + (begin + r) * s.hidden, h, s.hidden * sizeof(T));
        }
      }
    }
  });
}

namespace {

// What one group of tiles adds up: the weights' gradients [input_stride, gates], u's [F, lanes], bias_a's [units].
template <class T>
struct Sums {
  int64_t weights, amplitude, bias;
  explicit Sums(const SfmSizes& s, const SfmLayout<T>& lay)
      : weights(lay.input_stride * lay.gates), amplitude(s.frequencies * kLanes<T>), bias(lay.units) {}
  int64_t size() const { return weights + amplitude + bias; }
};

// to += from, over whole registers.
template <class T>
void add(int64_t n, const T* from, T* to) {
  for (int64_t i = 0; i < n; i += kLanes<T>) store(to + i, static_cast<Vec<T>>(load<Vec<T>>(to + i) + load<Vec<T>>(from + i)));
}

// The backward pass of one tile of rows. The gates are computed anew for all steps at once from the hidden states that the forward
// pass kept; S runs forward again, leaving a checkpoint every kSegment steps; then, segment by segment from the last, S is run
// through the segment a second time, every step kept, and the gradients run back. All of it is the tile's own scratch memory.
template <class T>
class BackwardTile {
 public:
  BackwardTile(const SfmSizes& sizes, const SfmInputs<T>& inputs, const SfmWeights<T>& packed)
      : s(sizes), in(inputs), weights(packed), lay(packed.lay), parts(s, lay), segments(ceil_div(s.steps, kSegment)),
        work(count(s.steps * lay.input_stride) + count(s.steps * lay.gates) + count(s.steps * lay.units) +
             count((segments + kSegment + 1) * lay.state) + count(weights.columns) + 2 * W::padded(s.frequencies * kLanes<T>) +
             W::padded(lay.units)),
        input(work.take(kBackwardTile * s.steps * lay.input_stride)), gates(work.take(kBackwardTile * s.steps * lay.gates)),
        a(work.take(kBackwardTile * s.steps * lay.units)), states(work.take(kBackwardTile * (segments + kSegment + 1) * lay.state)),
        dinput(work.take(kBackwardTile * weights.columns)), dfrequency(work.take(s.frequencies * kLanes<T>)),
        damplitude(work.take(s.frequencies * kLanes<T>)), dbias(work.take(lay.units)) {
    // Rows and columns of padding stay zero: a product with them adds nothing.
    std::fill_n(input, kBackwardTile * s.steps * lay.input_stride, T(0));
    std::fill_n(a, kBackwardTile * s.steps * lay.units, T(0));
  }

  void run(int64_t tile, const T* grad, const T* hidden, T* dx, T* sums) {
    begin = tile * kBackwardTile;
    rows = std::min(kBackwardTile, s.batch - begin);
    open(hidden);
    std::fill_n(checkpoint(0, 0), kBackwardTile * lay.state, T(0));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t segment = 0; segment + 1 < segments; ++segment) {
        const T* from = checkpoint(segment, r);
        for (int64_t t = segment * kSegment; t < (segment + 1) * kSegment; ++t, from = checkpoint(segment + 1, r))
          forward(t, r, from, checkpoint(segment + 1, r));
      }
    std::fill_n(dstate(0), kBackwardTile * lay.state, T(0));
    std::fill_n(dinput, kBackwardTile * weights.columns, T(0));
    for (int64_t r = 0; r < rows; ++r) std::memcpy(dinput + r * weights.columns, grad + (begin + r) * s.hidden, s.hidden * sizeof(T));
    for (int64_t segment = segments - 1; segment >= 0; --segment) {
      const int64_t start = segment * kSegment, stop = std::min(start + kSegment, s.steps);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = start; t < stop; ++t) forward(t, r, kept(segment, t, r), kept(segment, t + 1, r));
      std::fill_n(damplitude, parts.amplitude, T(0));
      std::fill_n(dbias, parts.bias, T(0));
      for (int64_t t = stop - 1; t >= start; --t) back(segment, t, dx);
      add<T>(parts.amplitude, damplitude, sums + parts.weights);  // sums of sums round less than one long sum
      add<T>(parts.bias, dbias, sums + parts.weights + parts.amplitude);
      const int64_t first = start * kBackwardTile, depth = (stop - start) * kBackwardTile;
      tile_gemm<T, false, true>(lay.input_stride, lay.gates / kLanes<T>, depth, input + first * lay.input_stride, lay.input_stride,
                                Right<T>{gates + first * lay.gates, lay.gates, 0}, sums, lay.gates);
    }
  }

 private:
  using W = Workspace<T>;
  static int64_t count(int64_t per_row) { return W::padded(kBackwardTile * per_row); }

  int64_t at(int64_t t, int64_t r) const { return t * kBackwardTile + r; }
  T* gate(int64_t t, int64_t r) { return gates + at(t, r) * lay.gates; }
  T* checkpoint(int64_t segment, int64_t r) { return states + at(segment, r) * lay.state; }
  // S before step t of the segment at hand: its first is the checkpoint.
  T* kept(int64_t segment, int64_t t, int64_t r) {
    return t == segment * kSegment ? checkpoint(segment, r) : checkpoint(segments - 1 + t - segment * kSegment, r);
  }
  T* dstate(int64_t r) { return checkpoint(segments + kSegment, r); }

  // The gates of all steps, and a = tanh of the amplitude, from h = o a: where o is zero neither a nor its gradient matters, but a
  // NaN must stay one.
  void open(const T* hidden) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < s.steps; ++t) {
        const T* h = hidden + ((begin + r) * s.steps + t) * s.hidden;
        T* row = input + at(t, r) * lay.input_stride;
        put_features(s, lay, in, begin + r, t, row);
        if (t + 1 < s.steps) put_state(s, in, begin + r, h, input + at(t + 1, r) * lay.input_stride);
        std::memcpy(a + at(t, r) * lay.units, h, s.hidden * sizeof(T));
      }
    tile_gemm<T, true, false>(s.steps * kBackwardTile, lay.gates / kLanes<T>, lay.inputs, input, lay.input_stride, weights.gates(), gates,
                              lay.gates);
    using P = Vec<T>;
    for (int64_t t = 0; t < s.steps; ++t)
      for (int64_t r = 0; r < kBackwardTile; ++r) {
        if (r >= rows) {
          std::fill_n(gate(t, r), lay.gates, T(0));
          std::fill_n(input + at(t, r) * lay.input_stride, lay.input_stride, T(0));
          continue;
        }
        open_gates(lay, gate(t, r));
        for (int64_t j = 0; j < lay.units; j += kLanes<T>) {
          T* p = a + at(t, r) * lay.units + j;
          const P h = load<P>(p), o = load<P>(gate(t, r) + 3 * lay.units + j), ratio = h / o;
          store(p, o > P{} ? ratio : h);
        }
      }
  }

  void forward(int64_t t, int64_t r, const T* before, T* after) {
    advance<T, false>(s, lay, gate(t, r), in.waves + 2 * t * s.frequencies, in.weight_a, before, after, [](int64_t, Vec<T>) {});
  }

  // The gates of step t become the gradients of their linear parts; dinput, the gradient of the hidden state after step t, becomes
  // that of the hidden state before it.
  void back(int64_t segment, int64_t t, T* dx) {
    for (int64_t r = 0; r < rows; ++r)
      step_back<T>(s, lay,
                   {gate(t, r), a + at(t, r) * lay.units, in.waves + 2 * t * s.frequencies, in.weight_a, kept(segment, t, r),
                    kept(segment, t + 1, r), dinput + r * weights.columns, dstate(r), damplitude, dbias, dfrequency, gate(t, r)});
    if (t == 0 && dx == nullptr) return;
    tile_gemm<T, true, false>(kBackwardTile, weights.columns / kLanes<T>, lay.gates, gate(t, 0), lay.gates, weights.transposed(), dinput,
                              weights.columns);
    for (int64_t r = 0; r < rows; ++r) {
      T* row = dinput + r * weights.columns;
      if (dx != nullptr)
        std::memcpy(dx + ((begin + r) * s.steps + t) * s.features, row + lay.units, s.features * sizeof(T));
      if (in.mask != nullptr)
        for (int64_t j = 0; j < s.hidden; ++j) row[j] *= in.mask[(begin + r) * s.hidden + j];
    }
  }

  const SfmSizes& s;
  const SfmInputs<T>& in;
  const SfmWeights<T>& weights;
  const SfmLayout<T>& lay;
  const Sums<T> parts;
  const int64_t segments;
  W work;
  T *input, *gates, *a, *states, *dinput, *dfrequency, *damplitude, *dbias;
  int64_t begin = 0, rows = 0;
};

}  // namespace

template <class T>
void sfm_backward(const SfmSizes& s, const SfmInputs<T>& in, const T* grad, const T* hidden, const SfmGradients<T>& out) {
  const SfmWeights<T> weights(s, in, true, out.x != nullptr);
  const SfmLayout<T>& lay = weights.lay;
  const Sums<T> parts(s, lay);
  const int64_t tiles = ceil_div(s.batch, kBackwardTile), groups = std::max<int64_t>(1, std::min(tiles, kGroups));
  Workspace<T> work(groups * parts.size());
  T* sums = work.take(groups * parts.size());
  std::fill_n(sums, parts.size(), T(0));
  parallel_for(tiles == 0 ? 0 : groups, 1, [&](int64_t first, int64_t last) {
    BackwardTile<T> tile(s, in, weights);
    for (int64_t group = first; group < last; ++group) {
      T* sum = sums + group * parts.size();
      std::fill_n(sum, parts.size(), T(0));
      for (int64_t i = tiles * group / groups; i < tiles * (group + 1) / groups; ++i) tile.run(i, grad, hidden, out.x, sum);
    }
  });
  const int64_t n = parts.size() / kLanes<T>;
  parallel_for(n, 1024, [&](int64_t first, int64_t last) {
    for (int64_t group = 1; group < groups; ++group)
      add<T>((last - first) * kLanes<T>, sums + group * parts.size() + first * kLanes<T>, sums + first * kLanes<T>);
  });
  const int64_t width = 4 * s.hidden + s.frequencies;
  const auto put_row = [&](int64_t row, T* to) {  // a row of the padded gradients
    for (int64_t gate = 0; gate < 5; ++gate)
      std::memcpy(to + gate * s.hidden, sums + row * lay.gates + gate * lay.units, (gate < 4 ? s.hidden : s.frequencies) * sizeof(T));
  };
  for (int64_t h = 0; h < s.hidden; ++h) put_row(h, out.weight_h + h * width);
  for (int64_t d = 0; d < s.features; ++d) put_row(lay.units + d, out.weight_x + d * width);
  put_row(lay.units + s.features, out.bias);
  for (int64_t k = 0; k < s.frequencies; ++k) out.weight_a[k] = sum_lanes<T>(load<Vec<T>>(sums + parts.weights + k * kLanes<T>));
  std::memcpy(out.bias_a, sums + parts.weights + parts.amplitude, s.hidden * sizeof(T));
}

#define AK_INSTANTIATE(T)                                                                   \
  template void sfm<T>(const SfmSizes&, const SfmInputs<T>&, T*, T*);                        \
  template void sfm_backward<T>(const SfmSizes&, const SfmInputs<T>&, const T*, const T*, const SfmGradients<T>&);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
