// ghost_batch_norm for the CPU key.
#include "norm.h"

namespace ak::bind {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ghost_batch_norm(
    const Tensor& x_in, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, const OptionalTensor& linear_bias, int64_t virtual_batch_size, bool training,
    double momentum, double eps) {
  const char* op = "ghost_batch_norm";
  check_float(op, "x", x_in);
  STD_TORCH_CHECK(x_in.dim() == 2, op, ": x must have 2 dimensions, got ", x_in.dim());
  STD_TORCH_CHECK(training || running_mean.has_value(), op, ": evaluation needs running_mean and running_var");
  const Tensor x = dense(x_in), y = torch::stable::empty_like(x);
  const Norm norm(op, x, x.size(1), weight, bias, running_mean, running_var, linear_bias, virtual_batch_size, training, true,
                  momentum, eps);
  if (x.size(1) > 0)
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(ghost_batch_norm<T>(data<T>(x), out<T>(y), x.size(1), norm.chunks, training, norm.inputs<T>(),
                                      norm.state<T>()));
    });
  return {y, norm.mean, norm.rstd, norm.new_running_mean, norm.new_running_var};
}

std::tuple<Tensor, Tensor, Tensor> ghost_batch_norm_backward(const Tensor& grad_in, const Tensor& x_in,
                                                             const OptionalTensor& weight_in, const Tensor& mean_in,
                                                             const Tensor& rstd_in, int64_t virtual_batch_size,
                                                             bool training) {
  const char* op = "ghost_batch_norm_backward";
  check_float(op, "x", x_in);
  const int64_t n = x_in.size(1);
  const Chunks chunks = chunks_of(op, x_in.size(0), virtual_batch_size, training);
  check_columns(op, "grad", grad_in, x_in, x_in.numel());
  check_columns(op, "weight", weight_in, x_in, n);
  check_columns(op, "mean", mean_in, x_in, chunks.count * n);
  check_columns(op, "rstd", rstd_in, x_in, chunks.count * n);
  const Tensor grad = dense(grad_in), x = dense(x_in), mean = dense(mean_in), rstd = dense(rstd_in);
  const OptionalTensor weight = dense(weight_in);
  const Tensor dx = torch::stable::empty_like(x), dweight = empty(x, {n}), dbias = empty(x, {n});
  if (n > 0)
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(ghost_batch_norm_backward<T>(data<T>(grad), data<T>(x), data<T>(weight), data<T>(mean), data<T>(rstd), n,
                                               chunks, training, out<T>(dx), out<T>(dweight), out<T>(dbias)));
    });
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("ghost_batch_norm", TORCH_BOX(&ghost_batch_norm));
  m.impl("ghost_batch_norm_backward", TORCH_BOX(&ghost_batch_norm_backward));
}

}  // namespace ak::bind
