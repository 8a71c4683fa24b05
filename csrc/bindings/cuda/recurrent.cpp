// The kernels of csrc/cuda/recurrent.h for the CUDA key. Schemas and the host code that calls them: ops/recurrent/cuda.py.
#include "../../cuda/recurrent.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cmath>
#include <string>

#include "../stable.h"

namespace ak::bind {
namespace {

using cuda::Precision;
using cuda::Sequence;

// The arguments of a call are checked against its first; the call then runs on that tensor's device, on the current stream.
class Call {
 public:
  Call(const char* op, const Tensor& like, bool tf32)
      : op_(op), like_(checked(op, like)), guard_(like.get_device_index()), tf32_(tf32) {}

  Precision precision() const {
    const ScalarType type = like_.scalar_type();
    if (type == ScalarType::BFloat16) return Precision::bf16;
    if (type == ScalarType::Half) return Precision::fp16;
    return tf32_ ? Precision::tf32 : Precision::fp32;
  }
  // The data of a dense tensor of n elements, or null.
  void* dense(const char* what, const OptionalTensor& t, int64_t n) const {
    if (!t.has_value()) return nullptr;
    check(what, *t, like_.scalar_type());
    STD_TORCH_CHECK(t->is_contiguous() && t->numel() == n, op_, ": ", what, " must be contiguous, of ", n, " elements, got ", t->numel());
    return t->data_ptr();
  }
  float* floats(const char* what, const Tensor& t, int64_t n) const {
    check(what, t, ScalarType::Float);
    STD_TORCH_CHECK(t.is_contiguous() && t.numel() == n, op_, ": ", what, " must be contiguous, of ", n, " elements, got ", t.numel());
    return static_cast<float*>(t.data_ptr());
  }
  // [T, B, columns], a row's columns side by side.
  Sequence sequence(const char* what, const OptionalTensor& t, int64_t steps, int64_t batch, int64_t columns) const {
    if (!t.has_value()) return {nullptr, 0, 0};
    check(what, *t, like_.scalar_type());
    STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == steps && t->size(1) == batch && t->size(2) == columns, op_, ": ", what,
                    " must be of shape [", steps, ", ", batch, ", ", columns, "]");
    STD_TORCH_CHECK(columns == 1 || t->stride(2) == 1, op_, ": the columns of ", what, " must be side by side");
    // A thread counts the elements of its tile's rows in 32 bits.
    STD_TORCH_CHECK(t->stride(1) <= (int64_t{1} << 31) / cuda::kTileRows - columns, op_, ": the rows of ", what, " must be less than ",
                    (int64_t{1} << 31) / cuda::kTileRows, " elements apart, got ", t->stride(1));
    return {t->data_ptr(), t->stride(0), t->stride(1)};
  }
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like_.get_device_index(), &stream));
    return stream;
  }
  void done(const std::string& error) const { STD_TORCH_CHECK(error.empty(), op_, ": the launch of the kernel failed: ", error); }

 private:
  static const Tensor& checked(const char* op, const Tensor& t) {
    const ScalarType type = t.scalar_type();
    STD_TORCH_CHECK(t.is_cuda(), op, ": the first argument must be a CUDA tensor");
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, op,
                    ": tensors must be float32, bfloat16 or float16");
    return t;
  }
  void check(const char* what, const Tensor& t, ScalarType type) const {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == like_.get_device_index() && t.scalar_type() == type, op_, ": ", what,
                    " must be on the first argument's device and of the dtype that goes with it");
  }

  const char* const op_;
  const Tensor like_;
  const torch::stable::accelerator::DeviceGuard guard_;
  const bool tf32_;
};

// W_hh [GH, H] of either cell.
bool is_lstm(const char* op, const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2 && (weight.size(0) == 3 * weight.size(1) || weight.size(0) == 4 * weight.size(1)), op,
                  ": weight must be of shape [3H, H] or [4H, H]");
  return weight.size(0) == 4 * weight.size(1);
}

void recurrent_layer(const Tensor& sums, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& h0,
                     const OptionalTensor& c0, const OptionalTensor& output, const Tensor& h_n, const OptionalTensor& c_n,
                     const OptionalTensor& gates, const OptionalTensor& cells, bool tf32) {
  const char* op = "recurrent_layer";
  const Call call(op, sums, tf32);
  const bool lstm = is_lstm(op, weight);
  STD_TORCH_CHECK(sums.dim() == 3, op, ": sums must be of three dimensions");
  const int64_t steps = sums.size(0), batch = sums.size(1), hidden = weight.size(1), state = batch * hidden;
  STD_TORCH_CHECK(c_n.has_value() == lstm && (lstm || !(c0.has_value() || cells.has_value())), op, ": c0, c_n and cells are an LSTM's");
  call.done(cuda::recurrent_layer(
      lstm, call.precision(),
      {steps, batch, hidden, call.sequence("sums", sums, steps, batch, weight.size(0)), call.dense("weight", weight, weight.size(0) * hidden),
       call.dense("bias", bias, hidden), call.dense("h0", h0, state), call.dense("c0", c0, state),
       call.sequence("output", output, steps, batch, hidden), call.dense("h_n", h_n, state), call.dense("c_n", c_n, state),
       call.dense("gates", gates, 4 * steps * state), call.dense("cells", cells, steps * state)},
      call.stream()));
}

void recurrent_layer_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                              const Tensor& weight, const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& output,
                              const Tensor& gates, const OptionalTensor& cells, const Tensor& grads, const Tensor& dh0,
                              const OptionalTensor& dc0, const Tensor& bias_grads, bool tf32) {
  const char* op = "recurrent_layer_backward";
  const Call call(op, gates, tf32);
  const bool lstm = is_lstm(op, weight);
  STD_TORCH_CHECK(gates.dim() == 3, op, ": gates must be of three dimensions");
  const int64_t steps = gates.size(0), batch = gates.size(1), hidden = weight.size(1), state = batch * hidden;
  STD_TORCH_CHECK(cells.has_value() == lstm && dc0.has_value() == lstm && (lstm || !(c0.has_value() || grad_c_n.has_value())), op,
                  ": grad_c_n, c0, cells and dc0 are an LSTM's");
  call.done(cuda::recurrent_layer_backward(
      lstm, call.precision(),
      {steps, batch, hidden, call.sequence("grad_output", grad_output, steps, batch, hidden), call.dense("grad_h_n", grad_h_n, state),
       call.dense("grad_c_n", grad_c_n, state), call.dense("weight", weight, weight.size(0) * hidden), call.dense("h0", h0, state),
       call.dense("c0", c0, state), call.dense("gates", gates, 4 * steps * state), call.dense("cells", cells, steps * state),
       call.sequence("output", output, steps, batch, hidden), call.dense("grads", grads, 4 * steps * state),
       call.dense("dh0", dh0, state), call.dense("dc0", dc0, state),
       call.floats("bias_grads", bias_grads, cuda::bias_rows(batch) * 4 * hidden)},
      call.stream()));
}

void dropout_rows(const Tensor& rows, const Tensor& to, const Tensor& seed, int64_t stream, double p) {
  const Call call("dropout_rows", rows, false);
  STD_TORCH_CHECK(seed.is_cuda() && seed.get_device_index() == rows.get_device_index() && seed.numel() == 1 &&
                      seed.scalar_type() == ScalarType::Long,
                  "dropout_rows: seed must be one int64 on the device of rows");
  const int64_t columns = rows.size(rows.dim() - 1);
  call.done(cuda::dropout_rows(call.precision(),
                               {call.dense("rows", rows, rows.numel()), call.dense("to", to, rows.numel()), rows.numel() / columns, columns,
                                stream, static_cast<const uint64_t*>(seed.data_ptr()), static_cast<uint64_t>(std::nearbyint(p * 4294967296.0)),
                                static_cast<float>(p < 1 ? 1 / (1 - p) : 0)},
                               call.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CUDA, m) {
  m.impl("recurrent_layer", TORCH_BOX(&recurrent_layer));
  m.impl("recurrent_layer_backward", TORCH_BOX(&recurrent_layer_backward));
  m.impl("dropout_rows", TORCH_BOX(&dropout_rows));
}

}  // namespace ak::bind

// For the choice of a kernel: -1 where there is none for the hidden size.
extern "C" __attribute__((visibility("default"))) int64_t alphakernels_recurrent_shared_bytes(int32_t lstm, int32_t precision,
                                                                                               int64_t hidden, int32_t backward) {
  return ak::cuda::recurrent_shared_bytes(lstm != 0, static_cast<ak::cuda::Precision>(precision), hidden, backward != 0);
}
