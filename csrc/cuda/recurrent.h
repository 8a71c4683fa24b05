// One layer of a GRU or an LSTM over all its steps, and dropout between layers, on a GPU: what the binding calls and the kernels take.
// Neither torch nor CUDA is known here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ak::cuda {

// What tensors hold and how they are multiplied: float by plain arithmetic, float rounded to tf32 or half precision by tensor cores.
enum class Precision : int32_t { fp32, tf32, bf16, fp16 };

// A sequence [T, B, columns]: element (t, b, j) is data[t * step + b * row + j]. data may be null.
struct Sequence {
  void* data;
  int64_t step, row;
};

// Null where there is none. sums [T, B, GH]: W_ih x and the biases that are added to it; bias [H]: b_hn of a GRU, which is not.
// gates [T, B, 4H] and cells [T, B, H] are what backward needs, and are kept where they are not null.
struct RecurrentForward {
  int64_t steps, batch, hidden;
  Sequence sums;
  const void *weight, *bias, *h0, *c0;  // W_hh [GH, H]; [H]; [B, H]
  Sequence output;                      // [T, B, H]
  void *h_n, *c_n, *gates, *cells;
};

// grads [T, B, 4H]: the gradients of the sums inside the gates, in the order of cells.h. bias_grads [bias_rows(batch), 4H], float:
// their sums over time and a few rows, to be added up.
struct RecurrentBackward {
  int64_t steps, batch, hidden;
  Sequence grad_output;
  const void *grad_h_n, *grad_c_n, *weight, *h0, *c0, *gates, *cells;
  Sequence output;
  void *grads, *dh0, *dc0;
  float* bias_grads;
};

// to = from * (0 or 1 / (1 - p)), rows [rows, columns]; `to` may be `from`.
struct DropoutRows {
  const void* from;
  void* to;
  int64_t rows, columns, stream;
  const uint64_t* seed;  // in the device's memory: a graph that is replayed finds another there
  uint64_t threshold;
  float scale;
};

constexpr int64_t kTileRows = 16;  // batch rows of a block
constexpr int64_t bias_rows(int64_t batch) { return (batch + kTileRows - 1) / kTileRows * (kTileRows / 2); }

// Bytes of shared memory that a block needs, forward or backward; -1 where there is no kernel for the hidden size.
int64_t recurrent_shared_bytes(bool lstm, Precision precision, int64_t hidden, bool backward);

// Each enqueues on the stream, on the current device, and returns the error's text; empty where there is none.
std::string recurrent_layer(bool lstm, Precision precision, const RecurrentForward& arguments, void* stream);
std::string recurrent_layer_backward(bool lstm, Precision precision, const RecurrentBackward& arguments, void* stream);
std::string dropout_rows(Precision precision, const DropoutRows& arguments, void* stream);

}  // namespace ak::cuda
