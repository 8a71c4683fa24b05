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
// The same of the backward pass, which keeps many steps of S.
constexpr int64_t kBackwardTile = kRegisterBytes == 64 ? 4 : 6;
// Bytes of S of a tile's rows that the backward pass keeps. Where that is not all steps, S is computed a second time.
constexpr int64_t kStateBytes = int64_t{4} << 20;
constexpr int64_t kSegment = 8;  // steps between two checkpoints of S, at least
// Rows times steps of a product that adds to the weights' gradients.
constexpr int64_t kChunkRows = 192;
// The backward pass sums the weights' gradients in this many pieces, and those in order.
constexpr int64_t kGroups = 32;

inline int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// Weights as the tiles want them: padded and packed. Of the forward pass [inputs, gates] (rows: hidden state, x, bias), of the
// backward pass the transpose [gates, hidden state | x].
template <class T>
struct SfmWeights {
  SfmLayout<T> lay;
  int64_t columns;  // of `backward`
  Scratch<T> forward, backward, bias_a;

  SfmWeights(const SfmSizes& s, const SfmInputs<T>& in, bool with_backward, bool with_x)
      : lay(s), columns(round_up(lay.units + (with_x ? s.features : 0), kLanes<T>)),
        forward(with_backward ? 0 : packed_size<T>(lay.inputs, lay.gates)),
        backward(with_backward ? packed_size<T>(lay.gates, columns) : 0), bias_a(lay.units) {
    const auto weight = [&](int64_t row, int64_t j) -> T {
      const int64_t gate = std::min<int64_t>(j / lay.units, 4), k = j - gate * lay.units, column = gate * s.hidden + k;
      if (k >= (gate < 4 ? s.hidden : s.frequencies)) return 0;
      if (row < s.hidden) return in.weight_h[row * s.gates() + column];
      if (row < lay.units) return 0;
      return row < lay.units + s.features ? in.weight_x[(row - lay.units) * s.gates() + column] : in.bias[column];
    };
    if (!with_backward)
      pack_panels<T>(lay.inputs, lay.gates, forward, weight);
    else
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

// Calls f(first column, where it lies in a tile's padded row, columns) for each gate, or for all at once that lie without gaps.
template <class T, class F>
void each_gate(const SfmSizes& s, const SfmLayout<T>& lay, const F& f) {
  if (lay.units == s.hidden) return f(0, 0, s.gates());
  for (int64_t gate = 0; gate < 5; ++gate) f(gate * s.hidden, gate * lay.units, gate < 4 ? s.hidden : s.frequencies);
}

// The hidden state as it enters the gates.
template <class T>
void put_state(const SfmSizes& s, const SfmInputs<T>& in, int64_t row, const T* h, T* input) {
  for (int64_t j = 0; j < s.hidden; ++j) input[j] = in.mask == nullptr ? h[j] : h[j] * in.mask[row * s.hidden + j];
}

}  // namespace

template <class T>
void sfm(const SfmSizes& s, const SfmInputs<T>& in, T* out, const SfmKept<T>& kept) {
  const SfmWeights<T> weights(s, in, false, false);
  const SfmLayout<T>& lay = weights.lay;
  const bool past_caches = s.batch * s.steps * s.gates() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
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
          if (kept.hidden != nullptr) {
            const int64_t at = (begin + r) * s.steps + t;
            std::memcpy(kept.hidden + at * s.hidden, &h[0], s.hidden * sizeof(T));
            each_gate(s, lay, [&](int64_t column, int64_t padded, int64_t n) {
              if (past_caches)
                stream_copy(kept.gates + at * s.gates() + column, gate + padded, n);
              else
                std::memcpy(kept.gates + at * s.gates() + column, gate + padded, n * sizeof(T));
            });
          }
          if (t + 1 == s.steps) std::memcpy(out + (begin + r) * s.hidden, &h[0], s.hidden * sizeof(T));
        }
      }
    }
    finish_streams();
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

// Steps between two checkpoints of S: as many as fit into kStateBytes with the checkpoints and the gradient of S, all if they do.
template <class T>
int64_t segment_steps(const SfmSizes& s, const SfmLayout<T>& lay) {
  const int64_t slots = kStateBytes / (kBackwardTile * std::max<int64_t>(lay.state, 1) * static_cast<int64_t>(sizeof(T)));
  int64_t steps = s.steps;
  while (steps > kSegment && ceil_div(s.steps, steps) + steps + 1 > slots) --steps;
  return steps;
}

// The backward pass of one tile of rows. S runs forward again from the gates that the forward pass kept, leaving a checkpoint after
// each segment of steps; then, segment by segment from the last, S is run through the segment a second time, every step kept, and the
// gradients run back. All of it is the tile's own scratch memory.
template <class T>
class BackwardTile {
 public:
  BackwardTile(const SfmSizes& sizes, const SfmInputs<T>& inputs, const SfmKept<const T>& kept_by_forward, const SfmWeights<T>& packed)
      : s(sizes), in(inputs), given(kept_by_forward), weights(packed), lay(packed.lay), parts(s, lay), length(segment_steps(s, lay)),
        segments(ceil_div(s.steps, length)), input(kBackwardTile * s.steps * lay.inputs), gates(kBackwardTile * s.steps * lay.gates),
        a(kBackwardTile * s.steps * lay.units), states(kBackwardTile * (segments + length + 1) * lay.state),
        dinput(kBackwardTile * packed.columns), dfrequency(s.frequencies * kLanes<T>), damplitude(s.frequencies * kLanes<T>),
        dbias(lay.units) {
    // Padded units stay zero.
    std::fill_n(&input[0], kBackwardTile * s.steps * lay.inputs, T(0));
    std::fill_n(&gates[0], kBackwardTile * s.steps * lay.gates, T(0));
    std::fill_n(&a[0], kBackwardTile * s.steps * lay.units, T(0));
  }

  void run(int64_t tile, const T* grad, T* dx, T* sums) {
    begin = tile * kBackwardTile;
    rows = std::min(kBackwardTile, s.batch - begin);
    std::fill_n(checkpoint(0, 0), kBackwardTile * lay.state, T(0));
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = checkpoint(0, r);
      for (int64_t t = 0; t < s.steps; ++t) {
        gather(t, r);
        T* const to = t < (segments - 1) * length ? checkpoint(t / length + 1, r) : kept(segments - 1, t + 1, r);
        forward(t, r, from, to);
        from = to;
      }
    }
    std::fill_n(dstate(0), kBackwardTile * lay.state, T(0));
    std::fill_n(&dinput[0], kBackwardTile * weights.columns, T(0));
    for (int64_t r = 0; r < rows; ++r) std::memcpy(dinput + r * weights.columns, grad + (begin + r) * s.hidden, s.hidden * sizeof(T));
    for (int64_t segment = segments - 1; segment >= 0; --segment) {
      const int64_t start = segment * length, stop = std::min(start + length, s.steps);
      for (int64_t r = 0; r < rows && segment + 1 < segments; ++r)
        for (int64_t t = start; t < stop; ++t) forward(t, r, kept(segment, t, r), kept(segment, t + 1, r));
      std::fill_n(&damplitude[0], parts.amplitude, T(0));
      std::fill_n(&dbias[0], parts.bias, T(0));
      for (int64_t t = stop - 1; t >= start; --t) back(segment, t, dx);
      add<T>(parts.amplitude, damplitude, sums + parts.weights);  // sums of sums round less than one long sum
      add<T>(parts.bias, dbias, sums + parts.weights + parts.amplitude);
      for (int64_t first = at(start, 0), last = at(stop, 0); first < last; first += kChunkRows)
        multiply<T>(lay.inputs, lay.gates, std::min(kChunkRows, last - first), {input + first * lay.inputs, 1, lay.inputs},
                    row_major<T>(gates + first * lay.gates, lay.gates), sums, lay.gates, true);
    }
  }

 private:
  int64_t at(int64_t t, int64_t r) const { return t * rows + r; }
  T* gate(int64_t t, int64_t r) { return gates + at(t, r) * lay.gates; }
  T* checkpoint(int64_t segment, int64_t r) { return states + (segment * kBackwardTile + r) * lay.state; }
  // S before step t of the segment at hand: its first is the checkpoint.
  T* kept(int64_t segment, int64_t t, int64_t r) {
    return t == segment * length ? checkpoint(segment, r) : checkpoint(segments - 1 + t - segment * length, r);
  }
  T* dstate(int64_t r) { return checkpoint(segments + length, r); }

  // What the gates of step t were computed from, what they were, and a = tanh of the amplitude from h = o a: where o is zero neither
  // a nor its gradient matters, but a NaN must stay one.
  void gather(int64_t t, int64_t r) {
    using P = Vec<T>;
    const int64_t place = (begin + r) * s.steps + t;
    const T *h = given.hidden + place * s.hidden, *opened = given.gates + place * s.gates();
    T *open = gate(t, r), *ratios = a + at(t, r) * lay.units;
    prefetch<1>(h + 2 * s.hidden, s.hidden);  // what is two steps ahead comes in meanwhile
    prefetch<1>(opened + 2 * s.gates(), s.gates());
    put_features<T>(s, lay, in, begin + r, t, input + at(t, r) * lay.inputs);
    if (t == 0) std::fill_n(input + r * lay.inputs, s.hidden, T(0));
    if (t + 1 < s.steps) put_state<T>(s, in, begin + r, h, input + at(t + 1, r) * lay.inputs);
    each_gate(s, lay, [&](int64_t column, int64_t padded, int64_t n) { std::memcpy(open + padded, opened + column, n * sizeof(T)); });
    for (int64_t gate = 0; gate < 4; ++gate)  // where the tile before may have left a NaN
      std::fill(open + gate * lay.units + s.hidden, open + (gate + 1) * lay.units, T(0));
    std::memcpy(ratios, h, s.hidden * sizeof(T));
    for (int64_t j = 0; j < lay.units; j += kLanes<T>) {
      const P value = load<P>(ratios + j), o = load<P>(open + 3 * lay.units + j), ratio = value / o;
      store(ratios + j, o > P{} ? ratio : value);
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
  const SfmKept<const T>& given;
  const SfmWeights<T>& weights;
  const SfmLayout<T>& lay;
  const Sums<T> parts;
  const int64_t length, segments;  // of a segment in steps; how many
  const Scratch<T> input, gates, a, states, dinput, dfrequency, damplitude, dbias;
  int64_t begin = 0, rows = 0;
};

}  // namespace

template <class T>
void sfm_backward(const SfmSizes& s, const SfmInputs<T>& in, const T* grad, const SfmKept<const T>& kept,
                  const SfmGradients<T>& out) {
  const SfmWeights<T> weights(s, in, true, out.x != nullptr);
  const SfmLayout<T>& lay = weights.lay;
  const Sums<T> parts(s, lay);
  const int64_t tiles = ceil_div(s.batch, kBackwardTile), groups = std::max<int64_t>(1, std::min(tiles, kGroups));
  const Scratch<T> work(groups * parts.size());
  T* sums = work;
  std::fill_n(sums, parts.size(), T(0));
  parallel_for(tiles == 0 ? 0 : groups, 1, [&](int64_t first, int64_t last) {
    BackwardTile<T> tile(s, in, kept, weights);
    for (int64_t group = first; group < last; ++group) {
      T* sum = sums + group * parts.size();
      std::fill_n(sum, parts.size(), T(0));
      for (int64_t i = tiles * group / groups; i < tiles * (group + 1) / groups; ++i) tile.run(i, grad, out.x, sum);
    }
  });
  const int64_t n = parts.size() / kLanes<T>;
  parallel_for(n, 1024, [&](int64_t first, int64_t last) {
    for (int64_t group = 1; group < groups; ++group)
      add<T>((last - first) * kLanes<T>, sums + group * parts.size() + first * kLanes<T>, sums + first * kLanes<T>);
  });
  const auto put_row = [&](int64_t row, T* to) {  // a row of the padded gradients
    each_gate(s, lay, [&](int64_t column, int64_t padded, int64_t n) {
      std::memcpy(to + column, sums + row * lay.gates + padded, n * sizeof(T));
    });
  };
  for (int64_t h = 0; h < s.hidden; ++h) put_row(h, out.weight_h + h * s.gates());
  for (int64_t d = 0; d < s.features; ++d) put_row(lay.units + d, out.weight_x + d * s.gates());
  put_row(lay.units + s.features, out.bias);
  for (int64_t k = 0; k < s.frequencies; ++k) out.weight_a[k] = sum_lanes<T>(load<Vec<T>>(sums + parts.weights + k * kLanes<T>));
  std::memcpy(out.bias_a, sums + parts.weights + parts.amplitude, s.hidden * sizeof(T));
}

#define AK_INSTANTIATE(T)                                                                   \
  template void sfm<T>(const SfmSizes&, const SfmInputs<T>&, T*, const SfmKept<T>&);          \
  template void sfm_backward<T>(const SfmSizes&, const SfmInputs<T>&, const T*, const SfmKept<const T>&, const SfmGradients<T>&);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
