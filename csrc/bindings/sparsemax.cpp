// sparsemax for the CPU key.
#include "../cpu/sparsemax.h"

#include "stable.h"

namespace ak::bind {
namespace {

Tensor sparsemax(const Tensor& x_in) {
  check_float("sparsemax", "x", x_in);
  const Tensor x = dense(x_in), mask = torch::stable::empty_like(x);
  const int64_t n = x.dim() > 0 ? x.size(x.dim() - 1) : 1;
  if (x.numel() == 0) return mask;
  for_dtype(x, [&](auto t) {
    using T = decltype(t);
    AK_DISPATCH(sparsemax<T>(data<T>(x), out<T>(mask), x.numel() / n, n));
  });
  return mask;
}

Tensor sparsemax_backward(const Tensor& grad_in, const Tensor& mask_in) {
  check_float("sparsemax_backward", "grad", grad_in);
  check_same("sparsemax_backward", "mask", mask_in, grad_in);
  STD_TORCH_CHECK(mask_in.numel() == grad_in.numel(), "sparsemax_backward: mask must have ", grad_in.numel(),
                  " elements, got ", mask_in.numel());
  const Tensor grad = dense(grad_in), mask = dense(mask_in), dx = torch::stable::empty_like(grad);
  const int64_t n = grad.dim() > 0 ? grad.size(grad.dim() - 1) : 1;
  if (grad.numel() == 0) return dx;
  for_dtype(grad, [&](auto t) {
    using T = decltype(t);
    AK_DISPATCH(sparsemax_backward<T>(data<T>(grad), data<T>(mask), out<T>(dx), grad.numel() / n, n));
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("sparsemax", TORCH_BOX(&sparsemax));
  m.impl("sparsemax_backward", TORCH_BOX(&sparsemax_backward));
}

}  // namespace ak::bind
