// linear for the CPU key.
#include "../cpu/linear.h"

#include "stable.h"

namespace ak::bind {
namespace {

void check_arguments(const char* op, const Tensor& x, const Tensor& weight, const OptionalTensor& mask) {
  check_float(op, "x", x);
  check_same(op, "weight", weight, x);
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && weight.size(1) == x.size(1), op,
                  ": x must be [rows, depth] and weight [columns, depth]");
  check_columns(op, "mask", mask, x, x.numel());
}

Tensor linear(const Tensor& x_in, const Tensor& weight_in, const OptionalTensor& mask_in) {
  check_arguments("linear", x_in, weight_in, mask_in);
  const Tensor x = dense(x_in), weight = dense(weight_in);
  const OptionalTensor mask = dense(mask_in);
  const Tensor u = empty(x, {x.size(0), weight.size(0)});
  for_dtype(x, [&](auto t) {
    using T = decltype(t);
    AK_DISPATCH(linear<T>(data<T>(x), data<T>(weight), data<T>(mask), out<T>(u), x.size(0), x.size(1), weight.size(0)));
  });
  return u;
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& weight_in,
                                                   const OptionalTensor& mask_in, bool x_needs_grad,
                                                   bool weight_needs_grad, bool mask_needs_grad) {
  const char* op = "linear_backward";
  check_arguments(op, x_in, weight_in, mask_in);
  const int64_t rows = x_in.size(0), depth = x_in.size(1), columns = weight_in.size(0);
  check_columns(op, "grad", grad_in, x_in, rows * columns);
  const Tensor grad = dense(grad_in), x = dense(x_in), weight = dense(weight_in);
  const OptionalTensor mask = dense(mask_in);
  const Tensor dx = x_needs_grad ? empty(x, {rows, depth}) : empty(x, {0});
  const Tensor dweight = weight_needs_grad ? empty(x, {columns, depth}) : empty(x, {0});
  const Tensor dmask = mask_needs_grad ? empty(x, {rows, depth}) : empty(x, {0});
  for_dtype(x, [&](auto t) {
    using T = decltype(t);
    AK_DISPATCH(linear_backward<T>(data<T>(grad), data<T>(x), data<T>(weight), data<T>(mask), out<T>(dx), out<T>(dweight),
                                   out<T>(dmask), rows, depth, columns, false, false));
  });
  return {dx, dweight, dmask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

}  // namespace ak::bind
