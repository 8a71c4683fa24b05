// glu_layer for the CPU key.
#include "../cpu/glu_layer.h"

#include "norm.h"

namespace ak::bind {
namespace {

void check_layer(const char* op, const Tensor& x, const Tensor& fc, const OptionalTensor& mask, bool residual) {
  check_float(op, "x", x);
  check_same(op, "fc", fc, x);
  STD_TORCH_CHECK(x.dim() == 2 && fc.dim() == 2 && fc.size(0) % 2 == 0 && fc.size(1) == x.size(1), op,
                  ": x must be [rows, depth] and fc [2 * hidden, depth]");
  check_columns(op, "mask", mask, x, x.numel());
  STD_TORCH_CHECK(!residual || (x.size(1) == fc.size(0) / 2 && !mask.has_value()), op,
                  ": a residual needs as many columns out as in, and no mask");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> glu_layer(
    const Tensor& x_in, const Tensor& fc_in, const OptionalTensor& mask_in, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& linear_bias, bool residual, int64_t virtual_batch_size, bool training, double momentum, double eps,
    double scale, bool save) {
  const char* op = "glu_layer";
  check_layer(op, x_in, fc_in, mask_in, residual);
  STD_TORCH_CHECK(training || running_mean.has_value(), op, ": evaluation needs running_mean and running_var");
  const Tensor x = dense(x_in), fc = dense(fc_in);
  const OptionalTensor mask = dense(mask_in);
  const int64_t rows = x.size(0), h = fc.size(0) / 2;
  const Tensor result = empty(x, {rows, h}), u = empty(x, {save ? rows : 0, 2 * h});
  const Norm norm(op, x, 2 * h, weight, bias, running_mean, running_var, linear_bias, virtual_batch_size, training, true,
                  momentum, eps);
  for_dtype(x, [&](auto t) {
    using T = decltype(t);
    const GluLayer<T> layer = {data<T>(x), data<T>(fc), data<T>(mask), x.size(1), h,
                               norm.chunks, training, residual, static_cast<T>(scale)};
    if (h > 0) AK_DISPATCH(glu_layer<T>(layer, norm.inputs<T>(), norm.state<T>(), out<T>(u), out<T>(result)));
  });
  return {result, u, norm.mean, norm.rstd, norm.new_running_mean, norm.new_running_var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> glu_layer_backward(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& fc_in, const OptionalTensor& mask_in,
    const OptionalTensor& weight_in, const OptionalTensor& bias_in, const Tensor& u_in, const Tensor& mean_in,
    const Tensor& rstd_in, bool residual, int64_t virtual_batch_size, bool training, double scale, bool x_needs_grad,
    bool fc_needs_grad, bool mask_needs_grad) {
  const char* op = "glu_layer_backward";
  check_layer(op, x_in, fc_in, mask_in, residual);
  const int64_t rows = x_in.size(0), depth = x_in.size(1), n = fc_in.size(0);
  const Chunks chunks = chunks_of(op, rows, virtual_batch_size, training);
  check_columns(op, "grad", grad_in, x_in, rows * n / 2);
  check_columns(op, "u (kept by glu_layer with save)", u_in, x_in, rows * n);
  check_columns(op, "weight", weight_in, x_in, n);
  check_columns(op, "bias", bias_in, x_in, n);
  check_columns(op, "mean", mean_in, x_in, chunks.count * n);
  check_columns(op, "rstd", rstd_in, x_in, chunks.count * n);
  const Tensor grad = dense(grad_in), x = dense(x_in), fc = dense(fc_in), u = dense(u_in), mean = dense(mean_in),
               rstd = dense(rstd_in);
  const OptionalTensor mask = dense(mask_in), weight = dense(weight_in), bias = dense(bias_in);
  const Tensor dx = x_needs_grad ? empty(x, {rows, depth}) : empty(x, {0});
  const Tensor dfc = fc_needs_grad ? empty(x, {n, depth}) : empty(x, {0});
  const Tensor dmask = mask_needs_grad ? empty(x, {rows, depth}) : empty(x, {0});
  const Tensor dweight = empty(x, {n}), dbias = empty(x, {n});
  for_dtype(x, [&](auto t) {
    using T = decltype(t);
    const GluLayer<T> layer = {data<T>(x), data<T>(fc), data<T>(mask), depth, n / 2, chunks, training, residual,
                               static_cast<T>(scale)};
    if (n == 0)
      zero({dx, dmask});
    else
      AK_DISPATCH(glu_layer_backward<T>(layer, data<T>(grad), data<T>(u), data<T>(weight), data<T>(bias), data<T>(mean),
                                        data<T>(rstd),
                                        {out<T>(dx), out<T>(dfc), out<T>(dmask), out<T>(dweight), out<T>(dbias)}));
  });
  return {dx, dfc, dmask, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("glu_layer", TORCH_BOX(&glu_layer));
  m.impl("glu_layer_backward", TORCH_BOX(&glu_layer_backward));
}

}  // namespace ak::bind
