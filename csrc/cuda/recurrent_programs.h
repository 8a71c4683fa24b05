// Which program runs a call. Whoever includes this has defined
//   template <class Program> std::string launch(int64_t blocks, int64_t shared_bytes, const typename Program::Arguments&, void* stream)
// for a GPU (recurrent.cu) or for the CPU that stands in for one (recurrent_host.cpp).
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "dropout_rows.h"
#include "recurrent.h"
#include "recurrent_backward.h"
#include "recurrent_forward.h"

namespace ak::cuda {
namespace {

using portable::GruCell;
using portable::LstmCell;

constexpr int64_t kLargestHidden = 128;

// How a block holds the weights; figures are ptxas's, benchmarks/records/cuda-kernels.csv. At extent 64 two blocks of 8 warps share a
// multiprocessor in tf32, three of 4 warps in half precision, whose threads take two tiles and so 8 bytes at once; with a GRU's weights
// in registers, an LSTM's half there, half in shared memory. At extent 128 a block has the multiprocessor to itself, in tf32 with one tile
// of the gates' gradients, as two would leave no room for the weights. Without vectors a thread has more addresses: there 8 warps do
// what 16 do with them.
template <class Cell, Precision precision, int extent, bool vectors>
struct ResidentOf {
  static constexpr bool lstm = Cell::kCellState, half = precision != Precision::tf32, small = extent == 64;
  static constexpr Product product = !half ? Product::tf32 : precision == Precision::bf16 ? Product::bf16 : Product::fp16;
  static constexpr int steps = extent / (half ? 16 : 8), tiles = (small ? half && vectors : !vectors) ? 2 : 1;
  static constexpr int in_registers = small ? (lstm ? steps / 2 : steps) : half ? (lstm ? 1 : vectors ? 8 : 4) : (lstm ? 4 : 6);
  static constexpr int buffers = half || small ? 2 : 1, blocks = !small ? 1 : half ? 3 : 2;
  using type = TensorProduct<product, Cell::kGates, extent, tiles, in_registers, buffers, blocks>;
};
template <class Cell, int extent, bool vectors>
struct ResidentOf<Cell, Precision::fp32, extent, vectors> {
  using type = PlainProduct<Cell::kGates, extent, extent / 64>;
};

// How rows are read: one number at a time, by vectors, or by vectors of a hidden size that is the extent, known to the compiler.
enum class Rows { any, vectors, whole };
template <template <class, class, bool, int> class Direction, class Cell, Precision precision, int extent, Rows rows>
using ProgramOf = Direction<Cell, typename ResidentOf<Cell, precision, extent, rows != Rows::any>::type, rows != Rows::any,
                            rows == Rows::whole ? extent : 0>;
template <class Cell, Precision precision, int extent, Rows rows>
using ForwardOf = ProgramOf<Forward, Cell, precision, extent, rows>;
template <class Cell, Precision precision, int extent, Rows rows>
using BackwardOf = ProgramOf<Backward, Cell, precision, extent, rows>;

// f(cell, precision, extent, rows) with types and constants for the values.
template <class F>
auto with_program(bool lstm, Precision precision, int64_t hidden, bool vectors, const F& f) {
  const auto with_rows = [&](auto cell, auto number, auto extent) {
    if (!vectors) return f(cell, number, extent, std::integral_constant<Rows, Rows::any>{});
    if (hidden == extent()) return f(cell, number, extent, std::integral_constant<Rows, Rows::whole>{});
    return f(cell, number, extent, std::integral_constant<Rows, Rows::vectors>{});
  };
  const auto with_extent = [&](auto cell, auto number) {
    return hidden <= 64 ? with_rows(cell, number, std::integral_constant<int, 64>{})
                        : with_rows(cell, number, std::integral_constant<int, 128>{});
  };
  const auto with_precision = [&](auto cell) {
    switch (precision) {
      case Precision::fp32: return with_extent(cell, std::integral_constant<Precision, Precision::fp32>{});
      case Precision::tf32: return with_extent(cell, std::integral_constant<Precision, Precision::tf32>{});
      case Precision::bf16: return with_extent(cell, std::integral_constant<Precision, Precision::bf16>{});
      default: return with_extent(cell, std::integral_constant<Precision, Precision::fp16>{});
    }
  };
  return lstm ? with_precision(LstmCell{}) : with_precision(GruCell{});
}

// Whether threads may read and write four numbers at once wherever their rows begin.
inline bool vectors_fit(int64_t hidden, std::initializer_list<Sequence> sequences, std::initializer_list<const void*> dense) {
  bool fit = hidden % 4 == 0;
  for (const Sequence& s : sequences) fit = fit && reinterpret_cast<uintptr_t>(s.data) % 16 == 0 && s.step % 4 == 0 && s.row % 4 == 0;
  for (const void* p : dense) fit = fit && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return fit;
}

constexpr int64_t tile_count(int64_t batch) { return (batch + kTileRows - 1) / kTileRows; }

}  // namespace

int64_t recurrent_shared_bytes(bool lstm, Precision precision, int64_t hidden, bool backward) {
  if (hidden < 1 || hidden > kLargestHidden) return -1;
  const auto bytes = [&](auto cell, auto number, auto extent, auto rows) {
    using Cell = decltype(cell);
    return backward ? BackwardOf<Cell, number(), extent(), rows()>::shared_bytes(hidden)
                    : ForwardOf<Cell, number(), extent(), rows()>::shared_bytes(hidden);
  };
  return std::max(with_program(lstm, precision, hidden, true, bytes), with_program(lstm, precision, hidden, false, bytes));
}

std::string recurrent_layer(bool lstm, Precision precision, const RecurrentForward& a, void* stream) {
  if (a.hidden < 1 || a.hidden > kLargestHidden) return "no kernel for hidden size " + std::to_string(a.hidden);
  const bool vectors = vectors_fit(a.hidden, {a.sums, a.output}, {a.h0, a.c0, a.h_n, a.c_n, a.gates, a.cells});
  return with_program(lstm, precision, a.hidden, vectors, [&](auto cell, auto number, auto extent, auto rows) {
    using Program = ForwardOf<decltype(cell), number(), extent(), rows()>;
    return launch<Program>(tile_count(a.batch), Program::shared_bytes(a.hidden), a, stream);
  });
}

std::string recurrent_layer_backward(bool lstm, Precision precision, const RecurrentBackward& a, void* stream) {
  if (a.hidden < 1 || a.hidden > kLargestHidden) return "no kernel for hidden size " + std::to_string(a.hidden);
  const bool vectors = vectors_fit(a.hidden, {a.grad_output, a.output},
                                   {a.grad_h_n, a.grad_c_n, a.h0, a.c0, a.gates, a.cells, a.grads, a.dh0, a.dc0});
  return with_program(lstm, precision, a.hidden, vectors, [&](auto cell, auto number, auto extent, auto rows) {
    using Program = BackwardOf<decltype(cell), number(), extent(), rows()>;
    return launch<Program>(tile_count(a.batch), Program::shared_bytes(a.hidden), a, stream);
  });
}

std::string dropout_rows(Precision precision, const DropoutRows& a, void* stream) {
  const int64_t blocks = (a.rows * Dropout::counters(a.columns) + 255) / 256;
  switch (precision) {
    case Precision::bf16: return launch<ScaleRows<Bfloat16>>(blocks, 0, a, stream);
    case Precision::fp16: return launch<ScaleRows<Float16>>(blocks, 0, a, stream);
    default: return launch<ScaleRows<float>>(blocks, 0, a, stream);
  }
}

}  // namespace ak::cuda
