#include "sfm.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../common/gemm.h"
#include "../common/parallel.h"
#include "sfm_cell.h"

namespace ak::AK_ISA {
namespace {

// Rows that go through all steps together: enough for a product's block of registers, few enough that their S stays in the
// second-level cache. The cut depends on nothing else, so that no result depends on the number of threads.
constexpr int64_t kTile = kRegisterBytes == 64 ? 8 : 6;
// Steps between two checkpoints of S in the backward pass.
constexpr int64_t kSegment = 8;
// The backward pass sums the weights' gradients in this many pieces, and those in order.
constexpr int64_t kGroups = 32;

inline int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// Weights as the tiles want them: padded and packed. `forward` is [inputs, gates] (rows: hidden state, x, bias), `backward` its
// transpose [gates, hidden state | x].
template <class T>
struct SfmWeights {
  SfmLayout<T> lay;
  int64_t columns;  // of `backward`
  Scratch<T> forward, backward, bias_a;

  SfmWeights(const SfmSizes& s, const SfmInputs<T>& in, bool with_backward, bool with_x)
      : lay(s), columns(round_up(lay.units + (with_x ? s.features : 0), kPanel<T>)), forward(lay.inputs * lay.gates),
        backward(with_backward ? lay.gates * columns : 0), bias_a(lay.units) {
    const int64_t width = 4 * s.hidden + s.frequencies;
    const auto weight = [&](int64_t row, int64_t j) -> T {
      const int64_t gate = std::min<int64_t>(j / lay.units, 4), k = j - gate * lay.units, column = gate * s.hidden + k;
      if (k >= (gate < 4 ? s.hidden : s.frequencies)) return 0;
      if (row < s.hidden) return in.weight_h[row * width + column];
      if (row < lay.units) return 0;
      return row < lay.units + s.features ? in.weight_x[(row - lay.units) * width + column] : in.bias[column];
    };
    pack_panels<T>(lay.inputs, lay.gates, forward, weight);
    if (with_backward)
      pack_panels<T>(lay.gates, columns, backward,
                     [&](int64_t j, int64_t row) { return row < lay.units + (with_x ? s.features : 0) ? weight(row, j) : T(0); });
    for (int64_t h = 0; h < lay.units; ++h) bias_a[h] = h < s.hidden ? in.bias_a[h] : T(0);
  }
};

// The parts of a gates' input row [hidden state | x | 1] that do not come from the step before.
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
  const SfmWeights<T> weights(s, in, false, false);
  const SfmLayout<T>& lay = weights.lay;
  parallel_for(ceil_div(s.batch, kTile), 1, [&](int64_t first, int64_t last) {
    const Scratch<T> input(kTile * lay.inputs), z(kTile * lay.gates), S(kTile * lay.state), h(lay.units);
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kTile, rows = std::min(kTile, s.batch - begin);
      std::fill_n(&input[0], rows * lay.inputs, T(0));
      std::fill_n(&S[0], rows * lay.state, T(0));
      for (int64_t t = 0; t < s.steps; ++t) {
        for (int64_t r = 0; r < rows; ++r) put_features(s, lay, in, begin + r, t, input + r * lay.inputs);
        multiply<T>(rows, lay.gates, lay.inputs, {input, lay.inputs, 1}, weights.forward, z, lay.gates);
        for (int64_t r = 0; r < rows; ++r) {
          T *gate = z + r * lay.gates, *memory = S + r * lay.state;
          open_gates(lay, gate);
          advance<T, true>(s, lay, gate, in.waves + 2 * t * s.frequencies, in.weight_a, memory, memory,
                           [&](int64_t j, Vec<T> power) {
                             const Vec<T> a = tanh<Vec<T>, T>(power + load<Vec<T>>(weights.bias_a + j));
                             store(h + j, static_cast<Vec<T>>(load<Vec<T>>(gate + 3 * lay.units + j) * a));
                           });
          put_state<T>(s, in, begin + r, h, input + r * lay.inputs);
          if (hidden != nullptr) std::memcpy(hidden + ((begin + r) * s.steps + t) * s.hidden, &h[0], s.hidden * sizeof(T));
          if (t + 1 == s.steps) std::memcpy(out + (begin + r) * s.hidden, &h[0], s.hidden * sizeof(T));
        }
      }
    }
  });
}

namespace {

// What one group of tiles adds up: the weights' gradients [inputs, gates], u's [F, lanes], bias_a's [units].
template <class T>
struct Sums {
  int64_t weights, amplitude, bias;
  explicit Sums(const SfmSizes& s, const SfmLayout<T>& lay)
      : weights(lay.inputs * lay.gates), amplitude(s.frequencies * kLanes<T>), bias(lay.units) {}
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
        input(kTile * s.steps * lay.inputs), gates(kTile * s.steps * lay.gates),
        a(kTile * s.steps * lay.units), states(kTile * (segments + kSegment + 1) * lay.state),
        dinput(kTile * packed.columns), dgates(kTile * kSegment * lay.gates),
        dfrequency(s.frequencies * kLanes<T>), damplitude(s.frequencies * kLanes<T>), dbias(lay.units) {
    // Padded units stay zero.
    std::fill_n(&input[0], kTile * s.steps * lay.inputs, T(0));
    std::fill_n(&a[0], kTile * s.steps * lay.units, T(0));
  }

  void run(int64_t tile, const T* grad, const T* hidden, T* dx, T* sums) {
    begin = tile * kTile;
    rows = std::min(kTile, s.batch - begin);
    open(hidden);
    std::fill_n(checkpoint(0, 0), kTile * lay.state, T(0));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t segment = 0; segment + 1 < segments; ++segment) {
        const T* from = checkpoint(segment, r);
        for (int64_t t = segment * kSegment; t < (segment + 1) * kSegment; ++t, from = checkpoint(segment + 1, r))
          forward(t, r, from, checkpoint(segment + 1, r));
      }
    std::fill_n(dstate(0), kTile * lay.state, T(0));
    std::fill_n(&dinput[0], kTile * weights.columns, T(0));
    for (int64_t r = 0; r < rows; ++r) std::memcpy(dinput + r * weights.columns, grad + (begin + r) * s.hidden, s.hidden * sizeof(T));
    for (int64_t segment = segments - 1; segment >= 0; --segment) {
      const int64_t start = segment * kSegment, stop = std::min(start + kSegment, s.steps);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = start; t < stop; ++t) forward(t, r, kept(segment, t, r), kept(segment, t + 1, r));
      std::fill_n(&damplitude[0], parts.amplitude, T(0));
      std::fill_n(&dbias[0], parts.bias, T(0));
      for (int64_t t = stop - 1; t >= start; --t) back(segment, t, dx);
      add<T>(parts.amplitude, damplitude, sums + parts.weights);  // sums of sums round less than one long sum
      add<T>(parts.bias, dbias, sums + parts.weights + parts.amplitude);
      const int64_t depth = (stop - start) * rows;
      pack<T>(gate(start, 0), lay.gates, depth, lay.gates, dgates);
      multiply<T>(lay.inputs, lay.gates, depth, {input + at(start, 0) * lay.inputs, 1, lay.inputs}, dgates, sums, lay.gates, true);
    }
  }

 private:
  int64_t at(int64_t t, int64_t r) const { return t * rows + r; }
  T* gate(int64_t t, int64_t r) { return gates + at(t, r) * lay.gates; }
  T* checkpoint(int64_t segment, int64_t r) { return states + (segment * kTile + r) * lay.state; }
  // S before step t of the segment at hand: its first is the checkpoint.
  T* kept(int64_t segment, int64_t t, int64_t r) {
    return t == segment * kSegment ? checkpoint(segment, r) : checkpoint(segments - 1 + t - segment * kSegment, r);
  }
  T* dstate(int64_t r) { return checkpoint(segments + kSegment, r); }

  // The gates of all steps, bitwise as the forward pass had them, and a = tanh of the amplitude from h = o a: where o is zero neither
  // a nor its gradient matters, but a NaN must stay one.
  void open(const T* hidden) {
    for (int64_t t = 0; t < s.steps; ++t)
      for (int64_t r = 0; r < rows; ++r) {
        const T* h = hidden + ((begin + r) * s.steps + t) * s.hidden;
        put_features<T>(s, lay, in, begin + r, t, input + at(t, r) * lay.inputs);
        if (t == 0) std::fill_n(input + r * lay.inputs, s.hidden, T(0));
        if (t + 1 < s.steps) put_state<T>(s, in, begin + r, h, input + at(t + 1, r) * lay.inputs);
        std::memcpy(a + at(t, r) * lay.units, h, s.hidden * sizeof(T));
      }
    const int64_t n = s.steps * rows;
    multiply<T>(n, lay.gates, lay.inputs, {input, lay.inputs, 1}, weights.forward, gates, lay.gates);
    using P = Vec<T>;
    for (int64_t i = 0; i < n; ++i) {
      open_gates<T>(lay, gates + i * lay.gates);
      for (int64_t j = 0; j < lay.units; j += kLanes<T>) {
        T* p = a + i * lay.units + j;
        const P h = load<P>(p), o = load<P>(gates + i * lay.gates + 3 * lay.units + j), ratio = h / o;
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
    multiply<T>(rows, weights.columns, lay.gates, {gate(t, 0), lay.gates, 1}, weights.backward, dinput, weights.columns);
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
  const Scratch<T> input, gates, a, states, dinput, dgates, dfrequency, damplitude, dbias;
  int64_t begin = 0, rows = 0;
};

}  // namespace

template <class T>
void sfm_backward(const SfmSizes& s, const SfmInputs<T>& in, const T* grad, const T* hidden, const SfmGradients<T>& out) {
  const SfmWeights<T> weights(s, in, true, out.x != nullptr);
  const SfmLayout<T>& lay = weights.lay;
  const Sums<T> parts(s, lay);
  const int64_t tiles = ceil_div(s.batch, kTile), groups = std::max<int64_t>(1, std::min(tiles, kGroups));
  const Scratch<T> work(groups * parts.size());
  T* sums = work;
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
