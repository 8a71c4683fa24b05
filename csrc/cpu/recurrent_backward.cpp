#include "recurrent_tile.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kTile = 64;        // batch rows of a tile, at most
constexpr int64_t kChunkRows = 192;  // depth of a product that adds to the weight gradients: steps of a chunk times rows of the tile

constexpr int64_t kLarge = int64_t{1} << 24;  // multiplications of the weight gradients from which on one group is too slow for one thread

// The batch is cut into groups by the sizes alone. A group's tiles add to one set of weight gradients, and the sets are added in
// order: the same sums for any number of threads.
inline int64_t group_count(const RecurrentSizes& s, int64_t set, int64_t kept) {
  const int64_t by_rows = s.batch <= 2048 ? std::min<int64_t>(s.batch / 20, 16) : std::min<int64_t>(s.batch / 96, 64);
  return even_groups(std::min(by_rows, kept / 2 / set));  // sets are memory: never more than half of what forward kept
}

// Rows r = 0, 1, .. at data + r * stride.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

template <class Cell, class T>
class Backward {
 public:
  Backward(const RecurrentArguments<T>& arguments, const SequenceView<const T>& output, const RecurrentKept<const T>& kept,
           const RecurrentGradients<T>& gradients)
      : a_(arguments), s_(arguments.sizes), output_(output), kept_(kept), g_(gradients),
        dropout_{arguments.seed, arguments.dropout} {
    for (int64_t l = 0; l < s_.layers; ++l) {
      set_at_.push_back(set_size_);
      set_size_ += (s_.width(l) + 1 + s_.hidden + 1) * padded(rows_);
      packed_.push_back(std::make_unique<Packed>(*this, l));
    }
  }

  void run() {
    const int64_t groups = group_count(s_, set_size_, s_.layers * s_.steps * s_.batch * 4 * s_.hidden);
    if (groups == 1 && s_.steps * s_.batch * set_size_ >= kLarge)
      by_layers();
    else
      by_groups(groups);
  }

 private:
  static int64_t padded(int64_t columns) { return round_up(columns, kPanel<T>); }

  // Weights as right operands of gradient products: rows in the order in which the cell gives its gradients.
  struct Packed {
    Scratch<T> x, h;
    Packed(const Backward& b, int64_t l) : x(b.rows_ * padded(b.s_.width(l))), h(b.rows_ * padded(b.s_.hidden)) {
      const int64_t hidden = b.s_.hidden, width = b.s_.width(l);
      parallel_for(b.rows_, 1 + 32768 / (hidden + width), [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) {
          const int64_t row_x = Cell::kRowOfX[k / hidden] * hidden + k % hidden, row_h = Cell::kRowOfH[k / hidden] * hidden + k % hidden;
          pack_row<kPanel<T>>(b.a_.layer[l].weight_ih + row_x * width, width, static_cast<T*>(x), b.rows_, k);
          pack_row<kPanel<T>>(b.a_.layer[l].weight_hh + row_h * hidden, hidden, static_cast<T*>(h), b.rows_, k);
        }
      });
    }
  };

  // The gradients of a tile's states, of all layers, each twice: after a step and before it.
  struct States {
    Scratch<T> dh, dc, zeros;
    States(const Backward& b, int64_t rows)
        : dh(2 * b.s_.layers * rows * padded(b.s_.hidden)), dc(2 * b.s_.layers * rows * b.s_.hidden), zeros(b.s_.hidden) {
      std::fill(zeros + 0, zeros + b.s_.hidden, T{0});
    }
  };

  // What the steps of a chunk need: the gradients of a layer's output, of its input and of its gates, and its inputs.
  struct Chunk {
    Scratch<T> dy, dx, gates, inputs;
    Chunk(const Backward& b, int64_t rows)  // steps times rows
        : dy(rows * b.s_.hidden), dx(rows * padded(std::max(b.s_.input, b.s_.hidden))), gates(rows * b.gates_stride_),
          inputs(rows * (std::max(b.s_.input, b.s_.hidden) + 1)) {}
  };

  // The state before step t of a layer: of the step before it, or the initial one, or zeros.
  Rows<T> before(const SequenceView<const T>& states, const T* initial, int64_t l, int64_t first, int64_t t, const T* zeros) const {
    if (t > 0) return {states.at(first, t - 1), states.batch};
    if (initial != nullptr) return {initial + (l * s_.batch + first) * s_.hidden, s_.hidden};
    return {zeros, 0};
  }

  SequenceView<const T> hidden_states(int64_t l) const {
    return l + 1 == s_.layers && output_.data != nullptr ? output_ : layer_view(kept_.hidden, l, s_, s_.hidden);
  }

  // Many rows: the batch's groups side by side, each with all layers of a chunk of steps while its gradients are in the cache.
  void by_groups(int64_t groups) {
    const int64_t group_rows = (s_.batch + groups - 1) / groups;
    const int64_t tiles = (group_rows + kTile - 1) / kTile, tile_rows = (group_rows + tiles - 1) / tiles;
    const int64_t steps = std::clamp<int64_t>(kChunkRows / tile_rows, 1, s_.steps);
    Scratch<T> sets(groups * set_size_);
    parallel_for(groups, 1, [&](int64_t first, int64_t last) {
      States states(*this, tile_rows);
      Chunk chunk(*this, steps * tile_rows);
      for (int64_t group = first; group < last; ++group) {
        T* set = sets + group * set_size_;
        std::fill(set, set + set_size_, T{0});
        const int64_t end = std::min(s_.batch, (group + 1) * group_rows);
        for (int64_t row = group * group_rows; row < end; row += tile_rows)
          run_tile(row, std::min(tile_rows, end - row), steps, states, chunk, set);
      }
    });
    reduce(sets, groups);
  }

  void run_tile(int64_t first, int64_t rows, int64_t steps, States& states, Chunk& chunk, T* set) {
    const int64_t hidden = s_.hidden;
    for (int64_t l = 0; l < s_.layers; ++l) load_states(l, first, rows, states);
    int64_t done = 0;  // steps gone back
    for (int64_t end = s_.steps; end > 0;) {
      const Patch patch{first, rows, std::max<int64_t>(0, end - steps), std::min(steps, end)};
      const T* dy = nullptr;
      int64_t dy_stride = hidden;
      if (g_.output.data != nullptr) {
        gather(g_.output, patch, hidden, static_cast<T*>(chunk.dy), hidden);
        dy = chunk.dy;
      }
      for (int64_t l = s_.layers - 1; l >= 0; --l) {
        through_cells(l, patch, dy, dy_stride, chunk.gates, rows, done, states);
        const int64_t depth = patch.steps * rows, columns = padded(s_.width(l));
        T* to = set + set_at_[l];
        gather_inputs(l, patch, chunk.inputs);
        add_products(s_.width(l), depth, chunk.inputs, chunk.gates + Cell::kFirstX * hidden, 0, padded(rows_), to);
        gather_states(l, patch, states, chunk.inputs);
        add_state_products(depth, patch.begin == 0 ? rows : 0, chunk.inputs, chunk.gates + Cell::kFirstH * hidden, 0, padded(rows_),
                           to + (s_.width(l) + 1) * padded(rows_));
        if (l == 0 && g_.dx.data == nullptr) break;
        multiply<T>(depth, columns, rows_, {chunk.gates + Cell::kFirstX * hidden, gates_stride_, 1}, packed_[l]->x, chunk.dx, columns);
        pass_down(l, patch, chunk.dx);
        dy = chunk.dx;
        dy_stride = columns;
      }
      done += patch.steps;
      end = patch.begin;
    }
    for (int64_t l = 0; l < s_.layers; ++l) store_states(l, first, rows, states);
  }

  // Few rows share large weights: layer after layer, its steps by tiles of rows, then the products of all its steps at once.
  void by_layers() {
    const int64_t hidden = s_.hidden, depth = s_.steps * s_.batch, wide = padded(hidden);
    const int64_t threads = std::min(thread_count(), s_.batch), each = (s_.batch + threads - 1) / threads;
    const int64_t tiles = threads * ((each + kTile - 1) / kTile), tile_rows = (s_.batch + tiles - 1) / tiles;
    Scratch<T> set(set_size_);
    Chunk chunk(*this, depth);
    const States zeros(*this, 1);
    std::fill(set + 0, set + set_size_, T{0});
    const auto each_step = [&](const auto& body) {
      parallel_for(s_.steps, 1 + 16384 / (s_.batch * hidden),
                   [&](int64_t first, int64_t last) { body(Patch{0, s_.batch, first, last - first}); });
    };
    const auto each_panel = [&](int64_t inputs, const auto& body) {
      parallel_for(padded(rows_) / kPanel<T>, 1 + 262144 / (depth * std::max<int64_t>(inputs, 1)),
                   [&](int64_t first, int64_t last) { body(first * kPanel<T>, last * kPanel<T>); });
    };
    T* dy = nullptr;
    if (g_.output.data != nullptr) {
      dy = chunk.dx;
      each_step([&](const Patch& p) { gather(g_.output, p, hidden, dy + p.begin * s_.batch * wide, wide); });
    }
    for (int64_t l = s_.layers - 1; l >= 0; --l) {
      parallel_for((s_.batch + tile_rows - 1) / tile_rows, 1, [&](int64_t first, int64_t last) {
        States states(*this, tile_rows);
        for (int64_t row = first * tile_rows; row < std::min(s_.batch, last * tile_rows); row += tile_rows) {
          const int64_t rows = std::min(tile_rows, s_.batch - row);
          load_states(l, row, rows, states);
          through_cells(l, {row, rows, 0, s_.steps}, dy != nullptr ? dy + row * wide : nullptr, wide, chunk.gates + row * gates_stride_,
                        s_.batch, 0, states);
          store_states(l, row, rows, states);
        }
      });
      const int64_t width = s_.width(l), columns = padded(width);
      T* to = set + set_at_[l];
      each_step([&](const Patch& p) { gather_inputs(l, p, chunk.inputs + p.begin * s_.batch * (width + 1)); });
      each_panel(width, [&](int64_t first, int64_t last) {
        add_products(width, depth, chunk.inputs, chunk.gates + Cell::kFirstX * hidden, first, last, to);
      });
      each_step([&](const Patch& p) { gather_states(l, p, zeros, chunk.inputs + p.begin * s_.batch * (hidden + 1)); });
      each_panel(hidden, [&](int64_t first, int64_t last) {
        add_state_products(depth, s_.batch, chunk.inputs, chunk.gates + Cell::kFirstH * hidden, first, last,
                           to + (width + 1) * padded(rows_));
      });
      if (l == 0 && g_.dx.data == nullptr) break;
      each_step([&](const Patch& p) {
        const int64_t at = p.begin * s_.batch;
        multiply<T>(p.steps * s_.batch, columns, rows_, {chunk.gates + at * gates_stride_ + Cell::kFirstX * hidden, gates_stride_, 1},
                    packed_[l]->x, chunk.dx + at * columns, columns);
        pass_down(l, p, chunk.dx + at * columns);
      });
      dy = chunk.dx;
    }
    reduce(set, 1);
  }

  // The gradients of the states after the last step in, of those before the first out.
  void load_states(int64_t l, int64_t first, int64_t rows, States& states) const {
    const int64_t hidden = s_.hidden, wide = padded(hidden), count = rows * hidden, at = (l * s_.batch + first) * hidden;
    T *dh = states.dh + 2 * l * rows * wide, *dc = states.dc + 2 * l * count;
    std::fill(dh, dh + 2 * rows * wide, T{0});
    if (g_.h_n != nullptr)
      for (int64_t r = 0; r < rows; ++r) std::memcpy(dh + r * wide, g_.h_n + at + r * hidden, static_cast<size_t>(hidden) * sizeof(T));
    if (!Cell::kCellState) return;
    if (g_.c_n != nullptr)
      std::memcpy(dc, g_.c_n + at, static_cast<size_t>(count) * sizeof(T));
    else
      std::fill(dc, dc + count, T{0});
  }
  void store_states(int64_t l, int64_t first, int64_t rows, const States& states) const {
    const int64_t hidden = s_.hidden, wide = padded(hidden), count = rows * hidden, at = (l * s_.batch + first) * hidden;
    const T* dh = states.dh + (2 * l + s_.steps % 2) * rows * wide;
    for (int64_t r = 0; g_.dh0 != nullptr && r < rows; ++r)
      std::memcpy(g_.dh0 + at + r * hidden, dh + r * wide, static_cast<size_t>(hidden) * sizeof(T));
    if (Cell::kCellState && g_.dc0 != nullptr)
      std::memcpy(g_.dc0 + at, states.dc + (2 * l + s_.steps % 2) * count, static_cast<size_t>(count) * sizeof(T));
  }

  // Back through a chunk of steps of one layer: the gradients of its gates' sums to `gates_out`. Both matrices are
  // [steps][.., rows, ..][stride], `between` rows from step to step; dy may be null.
  void through_cells(int64_t l, const Patch& p, const T* dy, int64_t dy_stride, T* gates_out, int64_t between, int64_t done,
                     const States& b) {
    const int64_t hidden = s_.hidden, wide = padded(hidden);
    const SequenceView<const T> kept = layer_view(kept_.gates, l, s_, 4 * hidden), cells = layer_view(kept_.cell, l, s_, hidden);
    const SequenceView<const T> hiddens = hidden_states(l);
    for (int64_t s = p.steps - 1; s >= 0; --s, ++done) {
      const int64_t t = p.begin + s;
      const T *dh = b.dh + (2 * l + done % 2) * p.rows * wide, *dc = b.dc + (2 * l + done % 2) * p.rows * hidden;
      T *dh_before = b.dh + (2 * l + (done + 1) % 2) * p.rows * wide, *dc_before = b.dc + (2 * l + (done + 1) % 2) * p.rows * hidden;
      T* grads = gates_out + s * between * gates_stride_;
      const Rows<T> state = before(Cell::kCellState ? cells : hiddens, Cell::kCellState ? a_.c0 : a_.h0, l, p.first, t, b.zeros);
      for (int64_t r = 0; r < p.rows; ++r) {
        const T *gates = kept.at(p.first + r, t), *earlier = state.data + r * state.stride;
        const T* later = Cell::kCellState ? cells.at(p.first + r, t) : nullptr;
        const T* row_dy = dy != nullptr ? dy + (s * between + r) * dy_stride : nullptr;
        // What the next step, and the weights' gradients, read comes in meanwhile.
        if (t > 0) prefetch<2>(kept.at(p.first + r, t - 1), 4 * hidden);
        if (t > 1) prefetch<2>((Cell::kCellState ? cells : hiddens).at(p.first + r, t - 2), hidden);
        if (Cell::kCellState && t > 0) prefetch<2>(hiddens.at(p.first + r, t - 1), hidden);
        if (l > 0) prefetch<2>(hidden_states(l - 1).at(p.first + r, t), hidden);
        for_each_pack<T>(hidden, [&](auto pack, int64_t j) {
          using P = decltype(pack);
          P values[4], grad[4], carried{}, after{};
#pragma GCC unroll 4
          for (int64_t g = 0; g < 4; ++g) values[g] = load<P>(gates + g * hidden + j);
          P d = load<P>(dh + r * wide + j);
          if (row_dy != nullptr) d += load<P>(row_dy + j);
          if constexpr (Cell::kCellState) {
            after = load<P>(later + j);
            carried = load<P>(dc + r * hidden + j);
          }
          Cell::template backward<Math<T>>(values, load<P>(earlier + j), after, d, carried, grad);
#pragma GCC unroll 4
          for (int64_t g = 0; g < 4; ++g) store(grads + r * gates_stride_ + g * hidden + j, grad[g]);
          store(Cell::kCellState ? dc_before + r * hidden + j : dh_before + r * wide + j, carried);
        });
      }
      if (t > 0 || g_.dh0 != nullptr)
        multiply<T>(p.rows, wide, rows_, {grads + Cell::kFirstH * hidden, gates_stride_, 1}, packed_[l]->h, dh_before, wide,
                    !Cell::kCellState);
    }
  }

  // A layer's inputs, and its states before each step, [steps][rows][columns + 1]: with a one at the end, for the bias is a weight whose
  // input is one.
  void gather_inputs(int64_t l, const Patch& p, T* to) const {
    const int64_t width = s_.width(l), stride = width + 1;
    gather(l == 0 ? a_.x : hidden_states(l - 1), p, width, to, stride);
    if (l > 0) drop(dropout_, l - 1, p, s_.batch, width, to, stride);
    for (int64_t i = 0; i < p.steps * p.rows; ++i) to[i * stride + width] = 1;
  }
  void gather_states(int64_t l, const Patch& p, const States& states, T* to) const {
    const int64_t hidden = s_.hidden, stride = hidden + 1;
    for (int64_t s = 0; s < p.steps; ++s) {
      const Rows<T> state = before(hidden_states(l), a_.h0, l, p.first, p.begin + s, states.zeros);
      for (int64_t r = 0; r < p.rows; ++r) {
        T* const row = to + (s * p.rows + r) * stride;
        std::memcpy(row, state.data + r * state.stride, static_cast<size_t>(hidden) * sizeof(T));
        row[hidden] = 1;
      }
    }
  }

  // Adds the products of `depth` inputs with the gradients of gates in columns [first, last): the transpose of a weight's gradient, and
  // under it that of its bias.
  void add_products(int64_t inputs, int64_t depth, const T* input, const T* gates, int64_t first, int64_t last, T* to) const {
    const int64_t stride = inputs + 1;
    for (int64_t i = 0; i < depth; i += kChunkRows)
      multiply<T>(stride, last - first, std::min(kChunkRows, depth - i), {input + i * stride, 1, stride},
                  row_major<T>(gates + i * gates_stride_ + first, gates_stride_), to + first, padded(rows_), true);
  }

  // The same with the states for inputs, of which the first `initial` rows are initial ones: of zeros only the bias has a gradient.
  void add_state_products(int64_t depth, int64_t initial, const T* input, const T* gates, int64_t first, int64_t last, T* to) const {
    const int64_t hidden = s_.hidden, stride = hidden + 1, zeros = starts_at_zero(a_) ? initial : 0;
    add_products(hidden, depth - zeros, input + zeros * stride, gates + zeros * gates_stride_, first, last, to);
    multiply<T>(zeros > 0 ? 1 : 0, last - first, zeros, {input + hidden, 1, stride}, row_major<T>(gates + first, gates_stride_),
                to + hidden * padded(rows_) + first, padded(rows_), true);
  }

  // From the gradient of a layer's input to that of what came into the dropout before it, or to x's.
  void pass_down(int64_t l, const Patch& p, T* dx) const {
    const int64_t columns = padded(s_.width(l));
    if (l == 0) return scatter(static_cast<const T*>(dx), columns, p, s_.input, g_.dx);
    drop(dropout_, l - 1, p, s_.batch, s_.hidden, dx, columns);
  }

  // from [rows][stride] to [columns][rows].
  static void transpose_to(const T* from, int64_t stride, int64_t rows, int64_t columns, T* to) {
    int64_t j = 0;
    for (; j + kLanes<T> <= rows; j += kLanes<T>) transpose_lanes<T>(from + j * stride, stride, columns, kLanes<T>, to + j, rows);
    for (; j < rows; ++j)
      for (int64_t k = 0; k < columns; ++k) to[k * rows + j] = from[j * stride + k];
  }

  // Adds the groups' sets in order, and puts rows and columns into torch's places.
  void reduce(T* sets, int64_t groups) {
    parallel_for(set_size_, 16384 / groups, [&](int64_t first, int64_t last) {
      for (int64_t group = 1; group < groups; ++group) {
        const T* const other = sets + group * set_size_;
        for (int64_t j = first; j < last; ++j) sets[j] += other[j];
      }
    });
    T* to = g_.dweights;
    for (int64_t l = 0; l < s_.layers; ++l) {
      const bool biases = a_.layer[l].bias_ih != nullptr;
      const int64_t hidden = s_.hidden, width = s_.width(l), columns = padded(rows_);
      const T* const x = sets + set_at_[l];
      const T* const h = x + (width + 1) * columns;
      T* const w_x = to;
      T* const w_h = w_x + rows_ * width;
      T* const b_x = w_h + rows_ * hidden;
      parallel_for(rows_, 1 + 65536 / (width + hidden), [&](int64_t first, int64_t last) {
        for (int64_t k = first, end; k < last; k = end) {  // a gate's units lie side by side
          const int64_t gate = k / hidden, unit = k % hidden;
          end = std::min(last, (gate + 1) * hidden);
          const int64_t row_x = Cell::kRowOfX[gate] * hidden + unit, row_h = Cell::kRowOfH[gate] * hidden + unit;
          transpose_to(x + k, columns, width, end - k, w_x + row_x * width);
          transpose_to(h + k, columns, hidden, end - k, w_h + row_h * hidden);
          if (!biases) continue;
          std::memcpy(b_x + row_x, x + width * columns + k, static_cast<size_t>(end - k) * sizeof(T));
          std::memcpy(b_x + rows_ + row_h, h + hidden * columns + k, static_cast<size_t>(end - k) * sizeof(T));
        }
      });
      to = b_x + (biases ? 2 * rows_ : 0);
    }
  }

  const RecurrentArguments<T>& a_;
  const RecurrentSizes& s_;
  const SequenceView<const T>& output_;
  const RecurrentKept<const T>& kept_;
  const RecurrentGradients<T>& g_;
  const Dropout dropout_;
  const int64_t rows_ = Cell::kGates * s_.hidden;  // of a weight matrix
  // Of a row of four gates' gradients: an odd number of cache lines, lest columns share cache sets; the products read whole panels.
  static constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t gates_stride_ =
      (round_up(std::max(4 * s_.hidden, Cell::kFirstH * s_.hidden + padded(rows_)), kLine) / kLine | 1) * kLine;
  std::vector<int64_t> set_at_;
  int64_t set_size_ = 0;  // elements of a set: of each layer the transposed weight_ih and weight_hh, each with a row for its bias
  std::vector<std::unique_ptr<Packed>> packed_;
};

}  // namespace

template <class T>
void recurrent_backward(bool lstm, const RecurrentArguments<T>& arguments, const SequenceView<const T>& output,
                        const RecurrentKept<const T>& kept, const RecurrentGradients<T>& gradients) {
  if (lstm)
    Backward<LstmCell, T>(arguments, output, kept, gradients).run();
  else
    Backward<GruCell, T>(arguments, output, kept, gradients).run();
}

#define AK_INSTANTIATE(T)                                                                                                \
  template void recurrent_backward<T>(bool, const RecurrentArguments<T>&, const SequenceView<const T>&,                  \
                                      const RecurrentKept<const T>&, const RecurrentGradients<T>&);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
