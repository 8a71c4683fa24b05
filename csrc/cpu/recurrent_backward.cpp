#include "recurrent_tile.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kTile = 64;        // batch rows of a tile, at most
constexpr int64_t kChunkRows = 192;  // depth of a product that adds to the weight gradients: steps of a chunk times rows of the tile

// The batch is cut into groups by the sizes alone. A group's tiles add to one set of weight gradients, and the sets are added in
// order: the same sums for any number of threads.
inline int64_t group_count(const RecurrentSizes& s, int64_t set, int64_t kept) {
  const int64_t by_rows = s.batch <= 2048 ? std::min<int64_t>((s.batch + 31) / 32, 16) : std::min<int64_t>(s.batch / 128, 64);
  return std::clamp<int64_t>(kept / 2 / set, 1, by_rows);  // sets are memory: never more than half of what forward kept
}

// Asks for n elements to come into the second cache.
template <class T>
inline void prefetch(const T* data, int64_t n) {
  for (int64_t j = 0; j < n; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(data + j, 0, 2);
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
    const int64_t group_rows = (s_.batch + groups - 1) / groups;
    const int64_t tiles = (group_rows + kTile - 1) / kTile, tile_rows = (group_rows + tiles - 1) / tiles;
    Scratch<T> sets(groups * set_size_);
    parallel_for(groups, 1, [&](int64_t first, int64_t last) {
      Buffers buffers(*this, tile_rows);
      for (int64_t group = first; group < last; ++group) {
        T* set = sets + group * set_size_;
        std::fill(set, set + set_size_, T{0});
        const int64_t end = std::min(s_.batch, (group + 1) * group_rows);
        for (int64_t row = group * group_rows; row < end; row += tile_rows)
          run_tile(row, std::min(tile_rows, end - row), buffers, set);
      }
    });
    reduce(sets, groups);
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

  struct Buffers {
    static constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    int64_t steps, gates_stride;
    Scratch<T> dh, dc, dy, dx, gates, inputs, zeros;
    Buffers(const Backward& b, int64_t rows)
        : steps(std::clamp<int64_t>(kChunkRows / rows, 1, b.s_.steps)),
          // An odd number of cache lines, lest columns share cache sets; the products read whole panels.
          gates_stride((round_up(std::max(4 * b.s_.hidden, Cell::kFirstH * b.s_.hidden + padded(b.rows_)), line) / line | 1) * line),
          dh(2 * b.s_.layers * rows * padded(b.s_.hidden)), dc(2 * b.s_.layers * rows * b.s_.hidden),
          dy(steps * rows * padded(b.s_.hidden)), dx(steps * rows * padded(std::max(b.s_.input, b.s_.hidden))),
          gates(steps * rows * gates_stride), inputs(steps * rows * (std::max(b.s_.input, b.s_.hidden) + 1)), zeros(b.s_.hidden) {
      std::fill(zeros + 0, zeros + b.s_.hidden, T{0});
    }
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

  void run_tile(int64_t first, int64_t rows, Buffers& b, T* set) {
    const int64_t hidden = s_.hidden, wide = padded(hidden), count = rows * hidden;
    for (int64_t l = 0; l < s_.layers; ++l) {
      T* dh = b.dh + 2 * l * rows * wide;
      std::fill(dh, dh + 2 * rows * wide, T{0});
      const int64_t at = (l * s_.batch + first) * hidden;
      if (g_.h_n != nullptr)
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(dh + r * wide, g_.h_n + at + r * hidden, static_cast<size_t>(hidden) * sizeof(T));
      if (!Cell::kCellState) continue;
      T* dc = b.dc + 2 * l * count;
      if (g_.c_n != nullptr)
        std::memcpy(dc, g_.c_n + at, static_cast<size_t>(count) * sizeof(T));
      else
        std::fill(dc, dc + count, T{0});
    }
    int64_t done = 0;  // steps gone back: which of the two dh and dc buffers is current
    for (int64_t end = s_.steps; end > 0;) {
      const Patch patch{first, rows, std::max<int64_t>(0, end - b.steps), std::min(b.steps, end)};
      const T* dy = nullptr;
      int64_t dy_stride = hidden;
      if (g_.output.data != nullptr) {
        gather(g_.output, patch, hidden, static_cast<T*>(b.dy), hidden);
        dy = b.dy;
      }
      for (int64_t l = s_.layers - 1; l >= 0; --l) {
        through_cells(l, patch, dy, dy_stride, done, b);
        add_weight_gradients(l, patch, b, set + set_at_[l]);
        if (l == 0 && g_.dx.data == nullptr) break;
        const int64_t columns = padded(s_.width(l));
        multiply<T>(patch.steps * rows, columns, rows_, {b.gates + Cell::kFirstX * hidden, b.gates_stride, 1}, packed_[l]->x, b.dx,
                    columns);
        if (l == 0) {
          scatter(static_cast<const T*>(b.dx), columns, patch, s_.input, g_.dx);
          break;
        }
        for (int64_t s = 0; s < patch.steps; ++s)
          for (int64_t r = 0; r < rows; ++r)
            dropout_.apply(l - 1, (patch.begin + s) * s_.batch + first + r, hidden, b.dx + (s * rows + r) * columns);
        dy = b.dx;
        dy_stride = columns;
      }
      done += patch.steps;
      end = patch.begin;
    }
    for (int64_t l = 0; l < s_.layers; ++l) {
      const int64_t at = (l * s_.batch + first) * hidden;
      const T* dh = b.dh + (2 * l + done % 2) * rows * wide;
      for (int64_t r = 0; r < rows; ++r) std::memcpy(g_.dh0 + at + r * hidden, dh + r * wide, static_cast<size_t>(hidden) * sizeof(T));
      if (Cell::kCellState)
        std::memcpy(g_.dc0 + at, b.dc + (2 * l + done % 2) * count, static_cast<size_t>(count) * sizeof(T));
    }
  }

  // Back through a chunk of steps of one layer: the gradients of its gates' sums to b.gates, [steps][rows][gates_stride].
  void through_cells(int64_t l, const Patch& p, const T* dy, int64_t dy_stride, int64_t done, Buffers& b) {
    const int64_t hidden = s_.hidden, wide = padded(hidden);
    const SequenceView<const T> kept = layer_view(kept_.gates, l, s_, 4 * hidden), cells = layer_view(kept_.cell, l, s_, hidden);
    const SequenceView<const T> hiddens = hidden_states(l);
    for (int64_t s = p.steps - 1; s >= 0; --s, ++done) {
      const int64_t t = p.begin + s;
      const T *dh = b.dh + (2 * l + done % 2) * p.rows * wide, *dc = b.dc + (2 * l + done % 2) * p.rows * hidden;
      T *dh_before = b.dh + (2 * l + (done + 1) % 2) * p.rows * wide, *dc_before = b.dc + (2 * l + (done + 1) % 2) * p.rows * hidden;
      T* grads = b.gates + s * p.rows * b.gates_stride;
      const Rows<T> state = Cell::kCellState ? before(cells, a_.c0, l, p.first, t, b.zeros) : before(hiddens, a_.h0, l, p.first, t, b.zeros);
      for (int64_t r = 0; r < p.rows; ++r) {
        const T *gates = kept.at(p.first + r, t), *earlier = state.data + r * state.stride;
        const T* later = Cell::kCellState ? cells.at(p.first + r, t) : nullptr;
        const T* row_dy = dy != nullptr ? dy + (s * p.rows + r) * dy_stride : nullptr;
        // What the next step, and the weights' gradients, read comes in meanwhile.
        if (t > 0) prefetch(kept.at(p.first + r, t - 1), 4 * hidden);
        if (t > 1) prefetch((Cell::kCellState ? cells : hiddens).at(p.first + r, t - 2), hidden);
        if (Cell::kCellState && t > 0) prefetch(hiddens.at(p.first + r, t - 1), hidden);
        if (l > 0) prefetch(hidden_states(l - 1).at(p.first + r, t), hidden);
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
          for (int64_t g = 0; g < 4; ++g) store(grads + r * b.gates_stride + g * hidden + j, grad[g]);
          store(Cell::kCellState ? dc_before + r * hidden + j : dh_before + r * wide + j, carried);
        });
      }
      multiply<T>(p.rows, wide, rows_, {grads + Cell::kFirstH * hidden, b.gates_stride, 1}, packed_[l]->h, dh_before, wide,
                  !Cell::kCellState);
    }
  }

  // Adds a chunk's products of the layer's inputs, and of its states, with the gate gradients to a group's set: the transposes of the
  // weights' gradients, and under them that of the bias, a weight whose input is one.
  void add_weight_gradients(int64_t l, const Patch& p, Buffers& b, T* set) {
    const int64_t hidden = s_.hidden, width = s_.width(l), depth = p.steps * p.rows, columns = padded(rows_);
    const auto add = [&](int64_t inputs, int64_t first_gate) {
      for (int64_t i = 0; i < depth; ++i) b.inputs[i * (inputs + 1) + inputs] = 1;
      multiply<T>(inputs + 1, columns, depth, {b.inputs, 1, inputs + 1}, row_major<T>(b.gates + first_gate * hidden, b.gates_stride), set,
                  columns, true);
      set += (inputs + 1) * columns;
    };
    gather(l == 0 ? a_.x : hidden_states(l - 1), p, width, static_cast<T*>(b.inputs), width + 1);
    if (l > 0)
      for (int64_t s = 0; s < p.steps; ++s)
        for (int64_t r = 0; r < p.rows; ++r)
          dropout_.apply(l - 1, (p.begin + s) * s_.batch + p.first + r, hidden, b.inputs + (s * p.rows + r) * (width + 1));
    add(width, Cell::kFirstX);
    for (int64_t s = 0; s < p.steps; ++s) {
      const Rows<T> state = before(hidden_states(l), a_.h0, l, p.first, p.begin + s, b.zeros);
      for (int64_t r = 0; r < p.rows; ++r)
        std::memcpy(b.inputs + (s * p.rows + r) * (hidden + 1), state.data + r * state.stride, static_cast<size_t>(hidden) * sizeof(T));
    }
    add(hidden, Cell::kFirstH);
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
      parallel_for(rows_, 1 + 16384 / (width + hidden), [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) {
          const int64_t row_x = Cell::kRowOfX[k / hidden] * hidden + k % hidden, row_h = Cell::kRowOfH[k / hidden] * hidden + k % hidden;
          for (int64_t j = 0; j < width; ++j) w_x[row_x * width + j] = x[j * columns + k];
          for (int64_t j = 0; j < hidden; ++j) w_h[row_h * hidden + j] = h[j * columns + k];
          if (!biases) continue;
          b_x[row_x] = x[width * columns + k];
          b_x[rows_ + row_h] = h[hidden * columns + k];
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
