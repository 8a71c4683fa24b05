// glu_block for the CPU key.
#include "../cpu/glu_block.h"

#include "norm.h"

namespace ak::bind {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> glu_block(
    const Tensor& u_in, const OptionalTensor& residual_in, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, const OptionalTensor& linear_bias,
    int64_t virtual_batch_size, bool training, double momentum, double eps, double scale) {
  const char* op = "glu_block";
  check_float(op, "u", u_in);
  STD_TORCH_CHECK(u_in.dim() == 2 && u_in.size(1) % 2 == 0, op, ": u must be [rows, 2 * hidden]");
  const int64_t rows = u_in.size(0), h = u_in.size(1) / 2;
  check_columns(op, "residual", residual_in, u_in, rows * h);
  const bool normed = training || running_mean.has_value();
  const Tensor u = dense(u_in), result = empty(u, {rows, h});
  const OptionalTensor residual = dense(residual_in);
  const Norm norm(op, u, 2 * h, weight, bias, running_mean, running_var, linear_bias, virtual_batch_size, training, normed,
                  momentum, eps);
  if (h > 0)
    for_dtype(u, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(glu_block<T>(data<T>(u), data<T>(residual), out<T>(result), h, norm.chunks, training, normed,
                               norm.inputs<T>(), norm.state<T>(), static_cast<T>(scale)));
    });
  return {result, norm.mean, norm.rstd, norm.new_running_mean, norm.new_running_var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> glu_block_backward(const Tensor& grad_in, const Tensor& u_in,
                                                              const OptionalTensor& weight_in, const OptionalTensor& bias_in,
                                                              const Tensor& mean_in, const Tensor& rstd_in,
                                                              int64_t virtual_batch_size, bool training, double scale,
                                                              bool residual_needs_grad) {
  const char* op = "glu_block_backward";
  check_float(op, "u", u_in);
  const int64_t rows = u_in.size(0), n = u_in.size(1), h = n / 2;
  const bool norm = mean_in.numel() > 0;
  const Chunks chunks = chunks_of(op, rows, virtual_batch_size, training);
  check_columns(op, "grad", grad_in, u_in, rows * h);
  check_columns(op, "weight", weight_in, u_in, n);
  check_columns(op, "bias", bias_in, u_in, n);
  if (norm) {
    check_columns(op, "mean", mean_in, u_in, chunks.count * n);
    check_columns(op, "rstd", rstd_in, u_in, chunks.count * n);
  }
  const Tensor grad = dense(grad_in), u = dense(u_in), mean = dense(mean_in), rstd = dense(rstd_in);
  const OptionalTensor weight = dense(weight_in), bias = dense(bias_in);
  const Tensor du = empty(u, {rows, n}), dresidual = empty(u, {residual_needs_grad ? rows : 0, h});
  const Tensor dweight = empty(u, {norm ? n : 0}), dbias = empty(u, {norm ? n : 0});
  if (h > 0)
    for_dtype(u, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(glu_block_backward<T>(data<T>(grad), data<T>(u), data<T>(weight), data<T>(bias),
                                        norm ? data<T>(mean) : nullptr, norm ? data<T>(rstd) : nullptr, h, chunks, training,
                                        static_cast<T>(scale), out<T>(du), residual_needs_grad ? out<T>(dresidual) : nullptr,
                                        out<T>(dweight), out<T>(dbias)));
    });
  return {du, dresidual, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("glu_block", TORCH_BOX(&glu_block));
  m.impl("glu_block_backward", TORCH_BOX(&glu_block_backward));
}

}  // namespace ak::bind
