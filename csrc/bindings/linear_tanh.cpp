// linear_tanh for the CPU key.
#include "../cpu/linear_tanh.h"

#include "stable.h"

namespace ak::bind {
namespace {

// The arguments that forward and backward have in common, checked once.
struct Arguments {
  Tensor x, weight;  // x is read in whatever layout it has
  OptionalTensor bias;

  Arguments(const char* op, const Tensor& x_in, const Tensor& weight_in, const OptionalTensor& bias_in)
      : x(x_in), weight(dense(weight_in)), bias(dense(bias_in)) {
    check_float(op, "x", x);
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3, op, ": x must be a CPU tensor of shape [B, T, K]");
    check_same(op, "weight", weight, x);
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == x.size(2), op, ": weight must be of shape [N, K], K that of x");
    check_columns(op, "bias", bias, x, weight.size(0));
  }
  template <class T>
  LinearTanh<T> of() const {
    return {x.size(0), x.size(1), x.size(2), weight.size(0), {data<T>(x), x.stride(0), x.stride(1), x.stride(2)}, data<T>(weight),
            data<T>(bias)};
  }
};

Tensor linear_tanh(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const Arguments given("linear_tanh", x, weight, bias);
  const Tensor y = empty(x, {x.size(0), x.size(1), weight.size(0)});
  if (y.numel() > 0)
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(linear_tanh<T>(given.of<T>(), out<T>(y)));
    });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> linear_tanh_backward(const Tensor& grad_in, const Tensor& x, const Tensor& weight,
                                                        const OptionalTensor& bias, const Tensor& y_in, bool x_needs_grad) {
  const char* op = "linear_tanh_backward";
  const Arguments given(op, x, weight, bias);
  const int64_t outputs = weight.size(0), values = x.size(0) * x.size(1) * outputs;
  check_columns(op, "grad", grad_in, x, values);
  check_columns(op, "y", y_in, x, values);
  const Tensor grad = dense(grad_in), y = dense(y_in);
  const Tensor dx = x_needs_grad ? empty(x, {x.size(0), x.size(1), x.size(2)}) : empty(x, {0});
  const Tensor dweight = empty(x, {outputs, x.size(2)}), dbias = empty(x, {outputs});
  if (values == 0)
    zero({dx, dweight, dbias});
  else
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(linear_tanh_backward<T>(given.of<T>(), data<T>(y), data<T>(grad), out<T>(dx), out<T>(dweight), out<T>(dbias)));
    });
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("linear_tanh", TORCH_BOX(&linear_tanh));
  m.impl("linear_tanh_backward", TORCH_BOX(&linear_tanh_backward));
}

}  // namespace ak::bind
