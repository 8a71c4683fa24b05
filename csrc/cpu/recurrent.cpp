#include "recurrent_tile.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kTile = 60;        // batch rows of a tile, at most
constexpr int64_t kChunkRows = 128;  // rows of a batched input projection: steps of a chunk times rows of the tile
// Of a layer's weights, or of the shared days' products: as much as stays in L2 while all of a tile's rows pass by.
constexpr int64_t kFusedBytes = int64_t{512} << 10;

// One register of units is worked through with all its gates: columns of the packed weights come in groups of kLanes units, gate after
// gate, the last group padded with zeros.
template <class T>
int64_t padded(int64_t units) {
  return round_up(units, kLanes<T>);
}

// A layer's weights packed as right operands, and its biases in the order of the cell's sums.
template <class Cell, class T>
class PackedLayer {
 public:
  PackedLayer(const RecurrentLayer<T>& layer, int64_t width, int64_t hidden)
      : x_(packed_size<T>(width, Cell::kGates * padded<T>(hidden))), h_(hidden * Cell::kGates * padded<T>(hidden)),
        bias_(4 * padded<T>(hidden)) {
    constexpr int64_t gates = Cell::kGates, lanes = kLanes<T>;
    const int64_t groups = padded<T>(hidden) / lanes, columns = round_up(gates * padded<T>(hidden), kPanel<T>);
    for (int64_t j = gates * padded<T>(hidden); j < columns; j += lanes)  // the last panel's padding
      transpose_lanes<T>(layer.weight_ih, width, width, 0, panel(j, width), kPanel<T>);
    parallel_for(groups * gates, 1 + 32768 / ((width + hidden) * lanes), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t unit = i / gates * lanes, gate = i % gates, n = std::min(lanes, hidden - unit), row = gate * hidden + unit;
        transpose_lanes<T>(layer.weight_ih + row * width, width, width, n, panel(i * lanes, width), kPanel<T>);
        transpose_lanes<T>(layer.weight_hh + row * hidden, hidden, hidden, n, h_ + unit * gates * hidden + gate * lanes, gates * lanes);
      }
    });
    std::fill(bias_ + 0, bias_ + 4 * padded<T>(hidden), T{0});
    if (layer.bias_ih == nullptr) return;
    for (int64_t i = 0; i < gates * hidden; ++i) {
      const int64_t unit = i % hidden, gate = i / hidden;
      T* const bias = bias_ + unit / lanes * 4 * lanes + unit % lanes;
      bias[gate * lanes] += layer.bias_ih[i];
      bias[Cell::kSumOfH[gate] * lanes] += layer.bias_hh[i];
    }
  }
  const T* x() const { return x_; }                                                // panels [width][kPanel]
  T* panel(int64_t column, int64_t width) const { return x_ + column / kPanel<T> * kPanel<T> * width + column % kPanel<T>; }
  const T* h(int64_t unit, int64_t hidden) const { return h_ + unit * Cell::kGates * hidden; }  // of a group: [H][kGates][kLanes]
  const T* bias(int64_t unit) const { return bias_ + 4 * unit; }                    // of a group: [4][kLanes]

 private:
  Scratch<T> x_, h_, bias_;
};

// Where one step of one layer reads and writes, for the rows of a tile. Units are padded, but in what is kept.
template <class T>
struct Step {
  const T* x;                // [rows][x_stride]: the layer's input, or where x_depth is 0 its product with the weights
  int64_t x_stride, x_depth;
  const int32_t* x_row;      // [rows]: whose product is which row of x; null where they come in order
  int64_t depth;             // of the recurrent product: H, or 0 where the state is zero
  const T* h_before;         // [rows][units]
  const T* before;           // h of a GRU, c of an LSTM
  T *after, *h;              // of a GRU the same
  T *gates, *hidden, *cell;  // kept, or null: row r at r * 4H, r * hidden_stride, r * H
  int64_t hidden_stride;
  bool stream;  // what is kept goes past the caches
};

// Adds the products of `rows` rows of `depth` elements with one register of units: gate g's weights are at w[g], `step` apart.
template <class T, int rows, int gates>
[[gnu::always_inline]] inline void add_products(const T* p, int64_t stride, int64_t depth, const T* const (&w)[gates], int64_t step,
                                                Vec<T> (&sum)[rows][gates]) {
  for (int64_t k = 0; k < depth; ++k, ++p) {
    Vec<T> b[gates];
#pragma GCC unroll 4
    for (int64_t g = 0; g < gates; ++g) b[g] = load<Vec<T>>(w[g] + k * step);
#pragma GCC unroll 8
    for (int64_t i = 0; i < rows; ++i) {
      const T s = p[i * stride];
#pragma GCC unroll 4
      for (int64_t g = 0; g < gates; ++g) sum[i][g] += s * b[g];
    }
  }
}

// The cell of `rows` rows and one register of units: both products and the gates, without leaving the registers.
// Never inlined: among a caller's variables its sums would not find their registers.
template <class Cell, class T, int rows>
[[gnu::noinline]] void step_tile(const Step<T>& step, const PackedLayer<Cell, T>& packed, int64_t row, int64_t unit, int64_t hidden) {
  constexpr int64_t gates = Cell::kGates, lanes = kLanes<T>;
  const int64_t units = padded<T>(hidden), n = std::min(lanes, hidden - unit);
  const T* const bias = packed.bias(unit);
  const auto x = [&](int64_t i) { return step.x + (step.x_row != nullptr ? step.x_row[row + i] : row + i) * step.x_stride; };
  const T *w_x[gates], *w_h[gates];
  Vec<T> sum[rows][gates];
  alignas(64) T sums_of[rows][4][lanes];
#pragma GCC unroll 4
  for (int64_t g = 0; g < gates; ++g) {
    w_x[g] = packed.panel(unit * gates + g * lanes, step.x_depth);
    w_h[g] = packed.h(unit, hidden) + g * lanes;
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int64_t g = 0; g < gates; ++g)
      sum[i][g] = step.x_depth > 0 ? Vec<T>{} : load<Vec<T>>(x(i) + unit * gates + g * lanes);
  // The lines of what is kept come in while the products run: in a cache that others share they are seldom there.
  for (int64_t r = row; step.gates != nullptr && !step.stream && r < row + rows; ++r) {
    for (int64_t g = 0; g < 4; ++g) __builtin_prefetch(step.gates + (4 * r + g) * hidden + unit, 1);
    if (step.hidden != nullptr) __builtin_prefetch(step.hidden + r * step.hidden_stride + unit, 1);
    if constexpr (Cell::kCellState) __builtin_prefetch(step.cell + r * hidden + unit, 1);
  }
  add_products(step.x + row * step.x_stride, step.x_stride, step.x_depth, w_x, kPanel<T>, sum);
#pragma GCC unroll 4
  for (int64_t g = 0; g < gates; ++g)
#pragma GCC unroll 8
    for (int64_t i = 0; i < rows; ++i) {
      sum[i][g] += load<Vec<T>>(bias + g * lanes);
      if (Cell::kSumOfH[g] == g) continue;  // else the two products are summed apart
      store(sums_of[i][g], sum[i][g]);
      sum[i][g] = load<Vec<T>>(bias + Cell::kSumOfH[g] * lanes);
    }
  add_products(step.h_before + row * units, units, step.depth, w_h, gates * lanes, sum);
  const auto keep = [&](T* to, Vec<T> value) {
    if (step.stream)
      stream(to, value);
    else if (n == lanes)
      store(to, value);
    else
      std::memcpy(to, &value, static_cast<size_t>(n) * sizeof(T));
  };
  // By way of the stack: a loop over rows keeps the constants of its exponentials in registers, which the sums have filled.
#pragma GCC unroll 8
  for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int64_t g = 0; g < gates; ++g) store(sums_of[i][Cell::kSumOfH[g]], sum[i][g]);
#pragma GCC unroll 1
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t r = row + i, at = r * units + unit;
    Vec<T> sums[4], kept[4], after;
#pragma GCC unroll 4
    for (int64_t g = 0; g < 4; ++g) sums[g] = load<Vec<T>>(sums_of[i][g]);
    const Vec<T> h = Cell::template forward<Math<T>>(sums, load<Vec<T>>(step.before + at), after, kept);
    store(step.h + at, h);
    if constexpr (Cell::kCellState) store(step.after + at, after);
    if (step.hidden != nullptr) keep(step.hidden + r * step.hidden_stride + unit, h);
    if (step.gates == nullptr) continue;
#pragma GCC unroll 4
    for (int64_t g = 0; g < 4; ++g) keep(step.gates + (4 * r + g) * hidden + unit, kept[g]);
    if constexpr (Cell::kCellState) keep(step.cell + r * hidden + unit, after);
  }
}

// The same for any number of rows up to `rows`, known only at run time.
template <class Cell, class T, int rows>
inline void step_tile_of(int64_t n, const Step<T>& step, const PackedLayer<Cell, T>& packed, int64_t row, int64_t unit, int64_t hidden) {
  if (n == rows) return step_tile<Cell, T, rows>(step, packed, row, unit, hidden);
  if constexpr (rows > 1) step_tile_of<Cell, T, rows - 1>(n, step, packed, row, unit, hidden);
}

// Rows whose sums fill the registers as a product's tile does.
template <class Cell>
constexpr int kStepRows = kTileRows * kTileVectors / Cell::kGates;

template <class Cell, class T>
void run_step(const Step<T>& step, const PackedLayer<Cell, T>& packed, int64_t rows, int64_t hidden) {
  constexpr int tile = kStepRows<Cell>;
  for (int64_t row = 0; row < rows; row += tile)
    for (int64_t unit = 0; unit < hidden; unit += kLanes<T>)
      step_tile_of<Cell, T, tile>(std::min<int64_t>(tile, rows - row), step, packed, row, unit, hidden);
}

// The first layer's products of a tile's distinct days.
template <class T>
class SharedDays {
 public:
  SharedDays(const RecurrentSizes& s, int64_t rows, int64_t stride, bool wanted)
      : most_(wanted ? most(s, rows, stride) : 0), stride_(stride), products_(most_ * stride), days_(most_ * s.input),
        place_(static_cast<size_t>(most_ > 0 ? rows * s.steps : 0)) {}

  // Whether rows [first, first + rows) share so many days that it is worth it: then their products are there.
  bool multiply(const RecurrentArguments<T>& a, int64_t first, int64_t rows, const T* weights) {
    const int64_t columns = a.sizes.input, count = distinct_days<T>(a.x, first, rows, a.sizes.steps, columns, most_, days_, place_.data());
    ak::AK_ISA::multiply<T>(count, stride_, columns, {days_, columns, 1}, weights, products_, stride_);
    return count > 0;
  }
  const T* products() const { return products_; }                                           // [..][stride]
  const int32_t* place(int64_t t, int64_t rows) const { return place_.data() + t * rows; }  // [rows], of a step's products

 private:
  // Distinct days up to which it is worth it; none where even the windows of one instrument have more.
  static int64_t most(const RecurrentSizes& s, int64_t rows, int64_t stride) {
    const int64_t n = std::min(rows * s.steps / 4, kFusedBytes / (stride * static_cast<int64_t>(sizeof(T))));
    return n >= rows + s.steps - 1 ? n : 0;
  }

  int64_t most_, stride_;
  Scratch<T> products_, days_;
  std::vector<int32_t> place_;
};

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
    // As many rows for each thread, in tiles of whole blocks of registers. A row's numbers do not depend on its tile.
    const int64_t threads = std::min(thread_count(), s_.batch), each = (s_.batch + threads - 1) / threads;
    const int64_t tiles = (each + kTile - 1) / kTile, rows = std::min(each, round_up((each + tiles - 1) / tiles, kStepRows<Cell>));
    parallel_for(threads, 1, [&](int64_t first, int64_t last) {
      Buffers buffers(s_, rows, kept_.gates != nullptr);
      for (int64_t thread = first; thread < last; ++thread) {
        const int64_t end = s_.batch * (thread + 1) / threads;
        for (int64_t row = s_.batch * thread / threads; row < end; row += rows) run_tile(row, std::min(rows, end - row), packed, buffers);
      }
      finish_streams();
    });
  }

 private:
  // A tile's memory: the states of all layers, and for a chunk of steps a layer's input, its projection and its output.
  struct Buffers {
    int64_t steps, stride;
    Scratch<T> h, c, one, other, sum_x;
    SharedDays<T> days;  // not in training, where windows come shuffled
    Buffers(const RecurrentSizes& s, int64_t rows, bool training)
        : steps(std::clamp<int64_t>(kChunkRows / rows, 1, s.steps)), stride(round_up(Cell::kGates * padded<T>(s.hidden), kPanel<T>)),
          h(s.layers * rows * padded<T>(s.hidden)), c(2 * s.layers * rows * padded<T>(s.hidden)),
          one(steps * rows * std::max(s.input, padded<T>(s.hidden))), other(steps * rows * padded<T>(s.hidden)),
          sum_x(steps * rows * stride), days(s, rows, stride, !training) {}
  };

  void run_tile(int64_t first, int64_t rows, const std::vector<std::unique_ptr<PackedLayer<Cell, T>>>& packed, Buffers& b) {
    const int64_t units = padded<T>(s_.hidden), state = rows * units;
    for (int64_t l = 0; l < s_.layers; ++l) {
      load_state(a_.h0, l, first, rows, b.h + l * state);
      if (Cell::kCellState) load_state(a_.c0, l, first, rows, b.c + 2 * l * state);
    }
    const bool shared = b.days.multiply(a_, first, rows, packed[0]->x());
    for (int64_t t = 0; t < s_.steps; t += b.steps) {
      const Patch patch{first, rows, t, std::min(b.steps, s_.steps - t)};
      if (!shared) gather(a_.x, patch, s_.input, static_cast<T*>(b.one), s_.input);
      T *in = b.one, *out = b.other;
      for (int64_t l = 0; l < s_.layers; ++l) {
        run_layer(l, patch, in, out, *packed[l], b, shared && l == 0);
        if (l + 1 < s_.layers) drop(dropout_, l, patch, s_.batch, s_.hidden, out, units);
        in = out;
        out = out == b.other ? b.one : b.other;
      }
    }
    for (int64_t l = 0; l < s_.layers; ++l) {
      store_state(b.h + l * state, h_n_, l, first, rows);
      if (Cell::kCellState) store_state(b.c + (2 * l + s_.steps % 2) * state, c_n_, l, first, rows);
    }
  }

  // Between rows of a [layers, B, H] state, null for zeros, and [rows][units].
  void load_state(const T* states, int64_t l, int64_t first, int64_t rows, T* to) const {
    const int64_t hidden = s_.hidden, units = padded<T>(hidden);
    std::fill(to, to + rows * units, T{0});
    for (int64_t r = 0; states != nullptr && r < rows; ++r)
      std::memcpy(to + r * units, states + (l * s_.batch + first + r) * hidden, static_cast<size_t>(hidden) * sizeof(T));
  }
  void store_state(const T* from, T* states, int64_t l, int64_t first, int64_t rows) const {
    const int64_t hidden = s_.hidden, units = padded<T>(hidden);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(states + (l * s_.batch + first + r) * hidden, from + r * units, static_cast<size_t>(hidden) * sizeof(T));
  }

  void run_layer(int64_t l, const Patch& p, const T* in, T* out, const PackedLayer<Cell, T>& packed, Buffers& b, bool shared) {
    const int64_t hidden = s_.hidden, state = p.rows * padded<T>(hidden), row = l == 0 ? s_.input : padded<T>(hidden);
    // Few rows share a large weight: then all steps' products come first. An element's sum is the same either way.
    const bool fused = !shared && p.rows >= kStepRows<Cell> && s_.width(l) > 0 &&
                       (s_.width(l) + hidden) * Cell::kGates * hidden * static_cast<int64_t>(sizeof(T)) <= kFusedBytes;
    if (!fused && !shared) multiply<T>(p.steps * p.rows, b.stride, s_.width(l), {in, row, 1}, packed.x(), b.sum_x, b.stride);
    const bool shown = l + 1 == s_.layers && output_.data != nullptr;
    const SequenceView<T> gates = layer_view(kept_.gates, l, s_, 4 * hidden), cells = layer_view(kept_.cell, l, s_, hidden);
    const SequenceView<T> hiddens = shown ? output_ : layer_view(kept_.hidden, l, s_, hidden);
    T* h = b.h + l * state;
    for (int64_t s = 0; s < p.steps; ++s) {
      const int64_t t = p.begin + s;
      const T* h_before = s == 0 ? h : out + (s - 1) * state;
      T* c = b.c + 2 * l * state;
      const Step<T> step{fused    ? in + s * p.rows * row
                         : shared ? b.days.products()
                                  : b.sum_x + s * p.rows * b.stride,
                         fused ? row : b.stride,
                         fused ? s_.width(l) : 0,
                         shared ? b.days.place(t, p.rows) : nullptr,
                         t == 0 && starts_at_zero(a_) ? 0 : hidden,
                         h_before,
                         Cell::kCellState ? c + t % 2 * state : h_before,
                         c + (t + 1) % 2 * state,
                         out + s * state,
                         gates.data != nullptr ? gates.at(p.first, t) : nullptr,
                         hiddens.data != nullptr ? hiddens.at(p.first, t) : nullptr,
                         cells.data != nullptr ? cells.at(p.first, t) : nullptr,
                         hiddens.batch,
                         stream_ && hiddens.data != nullptr && whole_lines(hiddens)};
      run_step<Cell, T>(step, packed, p.rows, hidden);
    }
    std::memcpy(h, out + (p.steps - 1) * state, static_cast<size_t>(state) * sizeof(T));
  }

  static bool whole_lines(const SequenceView<T>& view) {
    constexpr int64_t line = kLanes<T>;
    return view.batch % line == 0 && view.step % line == 0 && reinterpret_cast<uintptr_t>(view.data) % (line * sizeof(T)) == 0;
  }

  const RecurrentArguments<T>& a_;
  const RecurrentSizes& s_;
  const SequenceView<T>& output_;
  T *h_n_, *c_n_;
  const RecurrentKept<T>& kept_;
  const Dropout dropout_;
  // Kept arrays larger than a cache are read again when they have left it.
  const bool stream_ = kept_.gates != nullptr && s_.hidden % kLanes<T> == 0 &&
                       s_.layers * s_.steps * s_.batch * 4 * s_.hidden * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                       whole_lines(layer_view(kept_.gates, 0, s_, 4 * s_.hidden)) && whole_lines(layer_view(kept_.cell, 0, s_, s_.hidden));
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
