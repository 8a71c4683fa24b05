#include "recurrent_tile.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kTile = 5 * 12;    // batch rows of a tile, at most
constexpr int64_t kChunkRows = 128;  // rows of a batched input projection: steps of a chunk times rows of the tile

// The weights packed as right operands, and the biases as the cell takes them.
template <class Cell, class T>
class PackedLayer {
 public:
  PackedLayer(const RecurrentLayer<T>& layer, int64_t width, int64_t hidden)
      : rows_(Cell::kGates * hidden), x_(packed_size<T>(width, rows_)), h_(packed_size<T>(hidden, rows_)), bias_x_(rows_),
        bias_h_(rows_) {
    const int64_t panels = round_up(rows_, kPanel<T>) / kPanel<T>;
    parallel_for(2 * panels, 1 + 32768 / (hidden * kPanel<T>), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t j = i / 2 * kPanel<T>, n = std::min(kPanel<T>, rows_ - j), depth = i % 2 == 0 ? width : hidden;
        pack_transposed<T>((i % 2 == 0 ? layer.weight_ih : layer.weight_hh) + j * depth, depth, depth, n,
                           (i % 2 == 0 ? x_ : h_) + j * depth);
      }
    });
    // A gate whose two sums are added needs one bias.
    const int64_t joined = Cell::kCellState ? rows_ : 2 * hidden;
    for (int64_t j = 0; j < rows_; ++j) {
      const T b_x = layer.bias_ih != nullptr ? layer.bias_ih[j] : T{0}, b_h = layer.bias_hh != nullptr ? layer.bias_hh[j] : T{0};
      bias_x_[j] = j < joined ? b_x + b_h : b_x;
      bias_h_[j] = b_h;
    }
  }
  const T* x() const { return x_; }
  const T* h() const { return h_; }
  const T* bias_x() const { return bias_x_; }
  const T* bias_h() const { return bias_h_; }

 private:
  int64_t rows_;
  Scratch<T> x_, h_, bias_x_, bias_h_;
};

// Where one step of one layer reads and writes, for the rows of a tile.
template <class T>
struct Step {
  const T *sum_x, *sum_h;  // [rows][stride]
  int64_t stride;
  const T* before;         // [rows][H]: h of a GRU, c of an LSTM
  T *after, *h;            // [rows][H]; of a GRU the same
  T *gates, *hidden, *cell;  // kept, or null: row r at r * 4H, r * hidden_stride, r * H
  int64_t hidden_stride;
};

template <class Cell, class T>
void apply_cell(const Step<T>& step, const T* bias_x, const T* bias_h, int64_t rows, int64_t hidden) {
  constexpr int64_t gates = Cell::kGates;
  for (int64_t r = 0; r < rows; ++r) {
    const T *row_x = step.sum_x + r * step.stride, *row_h = step.sum_h + r * step.stride;
    for_each_pack<T>(hidden, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      P x[gates], h[gates], kept[4], after;
#pragma GCC unroll 4
      for (int64_t g = 0; g < gates; ++g) {
        x[g] = load<P>(row_x + g * hidden + j) + load<P>(bias_x + g * hidden + j);
        h[g] = load<P>(row_h + g * hidden + j);
      }
      if constexpr (!Cell::kCellState) h[2] += load<P>(bias_h + 2 * hidden + j);
      const P out = Cell::template forward<Math<T>>(x, h, load<P>(step.before + r * hidden + j), after, kept);
      store(step.h + r * hidden + j, out);
      if constexpr (Cell::kCellState) store(step.after + r * hidden + j, after);
      if (step.hidden != nullptr) store(step.hidden + r * step.hidden_stride + j, out);
      if (step.gates == nullptr) return;
#pragma GCC unroll 4
      for (int64_t g = 0; g < 4; ++g) store(step.gates + (4 * r + g) * hidden + j, kept[g]);
      if constexpr (Cell::kCellState) store(step.cell + r * hidden + j, after);
    });
  }
}

template <class Cell, class T>
class Forward {
 public:
  Forward(const RecurrentArguments<T>& arguments, const SequenceView<T>& output, T* h_n, T* c_n, const RecurrentKept<T>& kept)
      : a_(arguments), s_(arguments.sizes), output_(output), h_n_(h_n), c_n_(c_n), kept_(kept),
        dropout_{arguments.seed, arguments.dropout} {}

  void run() {
    std::vector<std::unique_ptr<PackedLayer<Cell, T>>> packed;
    for (int64_t l = 0; l < s_.layers; ++l)
      packed.push_back(std::make_unique<PackedLayer<Cell, T>>(a_.layer[l], s_.width(l), s_.hidden));
    // As many tiles for each thread. A row's numbers do not depend on its tile.
    const int64_t threads = thread_count(), each = (s_.batch + threads - 1) / threads;
    const int64_t tiles = std::min(s_.batch, threads * ((each + kTile - 1) / kTile)), rows = (s_.batch + tiles - 1) / tiles;
    parallel_for((s_.batch + rows - 1) / rows, 1, [&](int64_t first, int64_t last) {
      Buffers buffers(s_, rows);
      for (int64_t tile = first; tile < last; ++tile)
        run_tile(tile * rows, std::min(rows, s_.batch - tile * rows), packed, buffers);
    });
  }

 private:
  // A tile's memory: the states of all layers, and for a chunk of steps a layer's input, its projection and its output.
  struct Buffers {
    int64_t steps, stride;
    Scratch<T> h, c, one, other, sum_x, sum_h;
    Buffers(const RecurrentSizes& s, int64_t rows)
        : steps(std::clamp<int64_t>(kChunkRows / rows, 1, s.steps)), stride(round_up(Cell::kGates * s.hidden, kPanel<T>)),
          h(s.layers * rows * s.hidden), c(2 * s.layers * rows * s.hidden),
          one(steps * rows * std::max(s.input, s.hidden)), other(steps * rows * s.hidden), sum_x(steps * rows * stride),
          sum_h(rows * stride) {}
  };

  void run_tile(int64_t first, int64_t rows, const std::vector<std::unique_ptr<PackedLayer<Cell, T>>>& packed, Buffers& b) {
    const int64_t state = rows * s_.hidden;
    for (int64_t l = 0; l < s_.layers; ++l) {
      const int64_t at = l * s_.batch * s_.hidden;
      load_state(a_.h0 != nullptr ? a_.h0 + at : nullptr, first, rows, s_.hidden, b.h + l * state);
      if (Cell::kCellState) load_state(a_.c0 != nullptr ? a_.c0 + at : nullptr, first, rows, s_.hidden, b.c + 2 * l * state);
    }
    for (int64_t t = 0; t < s_.steps; t += b.steps) {
      const Patch patch{first, rows, t, std::min(b.steps, s_.steps - t)};
      gather(a_.x, patch, s_.input, static_cast<T*>(b.one));
      T *in = b.one, *out = b.other;
      for (int64_t l = 0; l < s_.layers; ++l) {
        run_layer(l, patch, in, out, *packed[l], b);
        if (l + 1 < s_.layers)
          for (int64_t s = 0; s < patch.steps; ++s)
            for (int64_t r = 0; r < rows; ++r)
              dropout_.apply(l, (t + s) * s_.batch + first + r, s_.hidden, out + (s * rows + r) * s_.hidden);
        in = out;
        out = out == b.other ? b.one : b.other;
      }
    }
    for (int64_t l = 0; l < s_.layers; ++l) {
      const int64_t at = (l * s_.batch + first) * s_.hidden;
      std::memcpy(h_n_ + at, b.h + l * state, static_cast<size_t>(state) * sizeof(T));
      if (Cell::kCellState)
        std::memcpy(c_n_ + at, b.c + (2 * l + s_.steps % 2) * state, static_cast<size_t>(state) * sizeof(T));
    }
  }

  void run_layer(int64_t l, const Patch& p, const T* in, T* out, const PackedLayer<Cell, T>& packed, Buffers& b) {
    const int64_t hidden = s_.hidden, state = p.rows * hidden, width = s_.width(l);
    multiply<T>(p.steps * p.rows, b.stride, width, {in, width, 1}, packed.x(), b.sum_x, b.stride);
    const bool shown = l + 1 == s_.layers && output_.data != nullptr;
    const SequenceView<T> gates = layer_view(kept_.gates, l, s_, 4 * hidden), cells = layer_view(kept_.cell, l, s_, hidden);
    const SequenceView<T> hiddens = shown ? output_ : layer_view(kept_.hidden, l, s_, hidden);
    T* h = b.h + l * state;
    for (int64_t s = 0; s < p.steps; ++s) {
      const int64_t t = p.begin + s;
      const T* h_before = s == 0 ? h : out + (s - 1) * state;
      T* c = b.c + 2 * l * state;
      multiply<T>(p.rows, b.stride, hidden, {h_before, hidden, 1}, packed.h(), b.sum_h, b.stride);
      const Step<T> step{b.sum_x + s * p.rows * b.stride,
                         b.sum_h,
                         b.stride,
                         Cell::kCellState ? c + t % 2 * state : h_before,
                         c + (t + 1) % 2 * state,
                         out + s * state,
                         gates.data != nullptr ? gates.at(p.first, t) : nullptr,
                         hiddens.data != nullptr ? hiddens.at(p.first, t) : nullptr,
                         cells.data != nullptr ? cells.at(p.first, t) : nullptr,
                         hiddens.batch};
      apply_cell<Cell, T>(step, packed.bias_x(), packed.bias_h(), p.rows, hidden);
    }
    std::memcpy(h, out + (p.steps - 1) * state, static_cast<size_t>(state) * sizeof(T));
  }

  const RecurrentArguments<T>& a_;
  const RecurrentSizes& s_;
  const SequenceView<T>& output_;
  T *h_n_, *c_n_;
  const RecurrentKept<T>& kept_;
  const Dropout dropout_;
};

}  // namespace

template <class T>
void recurrent(bool lstm, const RecurrentArguments<T>& arguments, const SequenceView<T>& output, T* h_n, T* c_n,
               const RecurrentKept<T>& kept) {
  if (lstm)
    Forward<LstmCell, T>(arguments, output, h_n, c_n, kept).run();
  else
    Forward<GruCell, T>(arguments, output, h_n, c_n, kept).run();
}

#define AK_INSTANTIATE(T)                                                                                                   \
  template void recurrent<T>(bool, const RecurrentArguments<T>&, const SequenceView<T>&, T*, T*, const RecurrentKept<T>&);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
