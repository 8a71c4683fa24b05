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
      set_size_ += rows_ * (padded(s_.width(l)) + padded(s_.hidden)) + 4 * s_.hidden;
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
    int64_t steps, gates_stride;
    Scratch<T> dh, dc, dy, dx, gates, panels, row, zeros;
    Buffers(const Backward& b, int64_t rows)
        : steps(std::clamp<int64_t>(kChunkRows / rows, 1, b.s_.steps)),
          gates_stride(4 * b.s_.hidden + 64 / static_cast<int64_t>(sizeof(T))),  // no power of two: columns would share cache sets
          dh(2 * b.s_.layers * rows * padded(b.s_.hidden)), dc(2 * b.s_.layers * rows * b.s_.hidden),
          dy(steps * rows * padded(b.s_.hidden)), dx(steps * rows * padded(std::max(b.s_.input, b.s_.hidden))),
          gates(steps * rows * gates_stride), panels(steps * rows * padded(std::max(b.s_.input, b.s_.hidden))),
          row(steps * rows * std::max(b.s_.input, b.s_.hidden)), zeros(b.s_.hidden) {
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
      if (Cell::kCellState) load_state(g_.c_n != nullptr ? g_.c_n + at - first * hidden : nullptr, first, rows, hidden, b.dc + 2 * l * count);
    }
    int64_t done = 0;  // steps gone back: which of the two dh and dc buffers is current
    for (int64_t end = s_.steps; end > 0;) {
      const Patch patch{first, rows, std::max<int64_t>(0, end - b.steps), std::min(b.steps, end)};
      const T* dy = nullptr;
      int64_t dy_stride = hidden;
      if (g_.output.data != nullptr) {
        gather(g_.output, patch, hidden, static_cast<T*>(b.dy));
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

  // Adds a chunk's products of gate gradients with the layer's inputs and with its states to a group's set.
  void add_weight_gradients(int64_t l, const Patch& p, Buffers& b, T* set) {
    const int64_t hidden = s_.hidden, width = s_.width(l), depth = p.steps * p.rows;
    T* in = b.row;
    if (l == 0) {
      gather(a_.x, p, width, in);
    } else {
      gather(hidden_states(l - 1), p, width, in);
      for (int64_t s = 0; s < p.steps; ++s)
        for (int64_t r = 0; r < p.rows; ++r)
          dropout_.apply(l - 1, (p.begin + s) * s_.batch + p.first + r, hidden, in + (s * p.rows + r) * width);
    }
    for (int64_t i = 0; i < depth; ++i) pack_row<kPanel<T>>(in + i * width, width, static_cast<T*>(b.panels), depth, i);
    multiply<T>(rows_, padded(width), depth, {b.gates + Cell::kFirstX * hidden, 1, b.gates_stride}, b.panels, set, padded(width), true);
    set += rows_ * padded(width);
    for (int64_t s = 0; s < p.steps; ++s) {
      const Rows<T> state = before(hidden_states(l), a_.h0, l, p.first, p.begin + s, b.zeros);
      for (int64_t r = 0; r < p.rows; ++r)
        pack_row<kPanel<T>>(state.data + r * state.stride, hidden, static_cast<T*>(b.panels), depth, s * p.rows + r);
    }
    multiply<T>(rows_, padded(hidden), depth, {b.gates + Cell::kFirstH * hidden, 1, b.gates_stride}, b.panels, set, padded(hidden), true);
    set += rows_ * padded(hidden);
    each_column_once<T>(4 * hidden, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      P sum{};
      for (int64_t i = 0; i < depth; ++i) sum += load<P>(b.gates + i * b.gates_stride + j);
      store(set + j, static_cast<P>(load<P>(set + j) + sum));
    });
  }

  // Adds the groups' sets in order, and puts rows and columns into torch's places.
  void reduce(const T* sets, int64_t groups) {
    T* to = g_.dweights;
    for (int64_t l = 0; l < s_.layers; ++l) {
      const bool biases = a_.layer[l].bias_ih != nullptr;
      const int64_t hidden = s_.hidden, width = s_.width(l);
      const T* from = sets + set_at_[l];
      const auto sum = [&](const T* source, int64_t columns, T* target) {
        for (int64_t j = 0; j < columns; ++j) {
          T total = source[j];
          for (int64_t group = 1; group < groups; ++group) total += source[group * set_size_ + j];
          target[j] = total;
        }
      };
      T* const w_x = to;
      T* const w_h = w_x + rows_ * width;
      const T* const from_h = from + rows_ * padded(width);
      parallel_for(rows_, 1 + 16384 / (groups * (width + hidden)), [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) {
          const int64_t unit = k % hidden, gate = k / hidden;
          sum(from + k * padded(width), width, w_x + (Cell::kRowOfX[gate] * hidden + unit) * width);
          sum(from_h + k * padded(hidden), hidden, w_h + (Cell::kRowOfH[gate] * hidden + unit) * hidden);
        }
      });
      to = w_h + rows_ * hidden;
      if (!biases) continue;
      const T* const sums = from_h + rows_ * padded(hidden);
      for (int64_t gate = 0; gate < Cell::kGates; ++gate) {
        sum(sums + (Cell::kFirstX + gate) * hidden, hidden, to + Cell::kRowOfX[gate] * hidden);
        sum(sums + (Cell::kFirstH + gate) * hidden, hidden, to + rows_ + Cell::kRowOfH[gate] * hidden);
      }
      to += 2 * rows_;
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
  int64_t set_size_ = 0;  // elements of a set: of each layer weight_ih, weight_hh (rows padded to panels) and 4H column sums
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
