// sfm for the CPU key.
#include "../cpu/sfm.h"

#include "kept.h"

namespace ak::bind {
namespace {

// The arguments that forward and backward have in common: checked once, made contiguous (x is read in whatever layout it has).
struct Sfm {
  Tensor x, weight_x, weight_h, bias, weight_a, bias_a, waves;
  OptionalTensor mask;
  SfmSizes sizes;

  Sfm(const char* op, const Tensor& x_in, const Tensor& weight_x_in, const Tensor& weight_h_in, const Tensor& bias_in,
      const Tensor& weight_a_in, const Tensor& bias_a_in, const Tensor& waves_in, const OptionalTensor& mask_in)
      : x(x_in), weight_x(dense(weight_x_in)), weight_h(dense(weight_h_in)), bias(dense(bias_in)), weight_a(dense(weight_a_in)),
        bias_a(dense(bias_a_in)), waves(dense(waves_in)), mask(dense(mask_in)) {
    check_float(op, "x", x);
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3, op, ": x must be a CPU tensor of shape [B, T, D]");
    sizes = {x.size(0), x.size(1), x.size(2), bias_a.numel(), weight_a.numel()};
    const int64_t width = sizes.gates();
    check_columns(op, "weight_x", weight_x, x, sizes.features * width);
    check_columns(op, "weight_h", weight_h, x, sizes.hidden * width);
    check_columns(op, "bias", bias, x, width);
    check_columns(op, "weight_a", weight_a, x, sizes.frequencies);
    check_columns(op, "bias_a", bias_a, x, sizes.hidden);
    check_columns(op, "waves", waves, x, sizes.steps * 2 * sizes.frequencies);
    check_columns(op, "hidden_mask", mask, x, sizes.batch * sizes.hidden);
  }

  template <class T>
  SfmInputs<T> inputs() const {
    return {data<T>(x),        x.stride(0),    x.stride(1),       x.stride(2),     data<T>(weight_x), data<T>(weight_h),
            data<T>(bias),     data<T>(weight_a), data<T>(bias_a), data<T>(waves), data<T>(mask)};
  }
};

std::tuple<Tensor, Tensor, Tensor> sfm(const Tensor& x, const Tensor& weight_x, const Tensor& weight_h, const Tensor& bias,
                                       const Tensor& weight_a, const Tensor& bias_a, const Tensor& waves, const OptionalTensor& mask,
                                       bool training) {
  const Sfm given("sfm", x, weight_x, weight_h, bias, weight_a, bias_a, waves, mask);
  const SfmSizes& s = given.sizes;
  const int64_t kept = training ? s.batch : 0;
  const Tensor result = empty(x, {s.batch, s.hidden}), hidden = empty_kept(x, {kept, s.steps, s.hidden}),
               gates = empty_kept(x, {kept, s.steps, s.gates()});
  if (s.hidden > 0)
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(sfm<T>(s, given.inputs<T>(), out<T>(result), {out<T>(hidden), out<T>(gates)}));
    });
  return {result, hidden, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sfm_backward(
    const Tensor& grad_in, const Tensor& x, const Tensor& weight_x, const Tensor& weight_h, const Tensor& bias,
    const Tensor& weight_a, const Tensor& bias_a, const Tensor& waves, const OptionalTensor& mask, const Tensor& hidden_in,
    const Tensor& gates_in, bool x_gradient) {
  const char* op = "sfm_backward";
  const Sfm given(op, x, weight_x, weight_h, bias, weight_a, bias_a, waves, mask);
  const SfmSizes& s = given.sizes;
  check_columns(op, "grad", grad_in, x, s.batch * s.hidden);
  check_columns(op, "hidden", hidden_in, x, s.batch * s.steps * s.hidden);
  check_columns(op, "gates", gates_in, x, s.batch * s.steps * s.gates());
  const Tensor grad = dense(grad_in), hidden = dense(hidden_in), gates = dense(gates_in);
  const int64_t width = s.gates();
  const Tensor dx = empty(x, {x_gradient ? s.batch : 0, s.steps, s.features}), dweight_x = empty(x, {s.features, width}),
               dweight_h = empty(x, {s.hidden, width}), dbias = empty(x, {width}), dweight_a = empty(x, {s.frequencies}),
               dbias_a = empty(x, {s.hidden});
  if (s.hidden == 0)
    zero({dx, dweight_x, dbias, dweight_a});
  else
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(sfm_backward<T>(s, given.inputs<T>(), data<T>(grad), {data<T>(hidden), data<T>(gates)},
                                  SfmGradients<T>{out<T>(dx), out<T>(dweight_x), out<T>(dweight_h), out<T>(dbias),
                                                  out<T>(dweight_a), out<T>(dbias_a)}));
    });
  return {dx, dweight_x, dweight_h, dbias, dweight_a, dbias_a};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("sfm", TORCH_BOX(&sfm));
  m.impl("sfm_backward", TORCH_BOX(&sfm_backward));
}

}  // namespace ak::bind
