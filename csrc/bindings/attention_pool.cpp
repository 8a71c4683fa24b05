// attention_pool for the CPU key.
#include "../cpu/attention_pool.h"

#include "stable.h"

namespace ak::bind {
namespace {

// The arguments that forward and backward have in common: checked once, made contiguous.
struct Arguments {
  Tensor h, weight, score;
  OptionalTensor bias;
  uint64_t seed;
  double dropout;

  Arguments(const char* op, const Tensor& h_in, const Tensor& weight_in, const OptionalTensor& bias_in, const Tensor& score_in,
            const OptionalTensor& seed_in, double dropout_in)
      : h(dense(h_in)), weight(dense(weight_in)), score(dense(score_in)), bias(dense(bias_in)), seed(0),
        dropout(seed_in.has_value() ? dropout_in : 0) {
    check_float(op, "h", h);
    STD_TORCH_CHECK(h.is_cpu() && h.dim() == 3 && h.size(1) > 0, op, ": h must be a CPU tensor of shape [B, T, H], T > 0");
    check_columns(op, "weight", weight, h, score.numel() * h.size(2));
    check_columns(op, "bias", bias, h, score.numel());
    check_same(op, "score", score, h);
    if (seed_in.has_value()) {
      STD_TORCH_CHECK(seed_in->is_cpu() && seed_in->scalar_type() == ScalarType::Long && seed_in->numel() == 1, op,
                      ": seed must be one int64 on the CPU");
      seed = static_cast<uint64_t>(*data<int64_t>(*seed_in));
    }
  }
  template <class T>
  AttentionPool<T> of() const {
    return {h.size(0), h.size(1), h.size(2), score.numel(), data<T>(h), data<T>(weight), data<T>(bias), data<T>(score), seed, dropout};
  }
};

std::tuple<Tensor, Tensor> attention_pool(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& score,
                                          const OptionalTensor& seed, double dropout) {
  const Arguments given("attention_pool", h, weight, bias, score, seed, dropout);
  const Tensor result = empty(h, {h.size(0), 2 * h.size(2)}), weights = empty(h, {h.size(0), h.size(1)});
  if (h.size(0) > 0)  // no features are scores of the bias alone
    for_dtype(h, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(attention_pool<T>(given.of<T>(), out<T>(result), out<T>(weights)));
    });
  return {result, weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_pool_backward(const Tensor& grad_in, const OptionalTensor& grad_weights_in,
                                                                   const Tensor& h, const Tensor& weight, const OptionalTensor& bias,
                                                                   const Tensor& score, const Tensor& weights_in,
                                                                   const OptionalTensor& seed, double dropout) {
  const char* op = "attention_pool_backward";
  const Arguments given(op, h, weight, bias, score, seed, dropout);
  const Tensor grad = dense(grad_in), weights = dense(weights_in);
  const OptionalTensor grad_weights = dense(grad_weights_in);
  check_columns(op, "grad", grad, h, h.size(0) * 2 * h.size(2));
  check_columns(op, "weights", weights, h, h.size(0) * h.size(1));
  check_columns(op, "grad_weights", grad_weights, h, h.size(0) * h.size(1));
  const int64_t attention = score.numel();
  const Tensor dh = empty(h, {h.size(0), h.size(1), h.size(2)});
  const Tensor dweight = empty(h, {attention, h.size(2)}), dbias = empty(h, {attention}), dscore = empty(h, {attention});
  if (h.size(0) == 0)
    zero({dweight, dbias, dscore});
  else
    for_dtype(h, [&](auto t) {
      using T = decltype(t);
      const AttentionPoolGradients<T> gradients{data<T>(grad),   data<T>(grad_weights), out<T>(dh),
                                                out<T>(dweight), out<T>(dbias),         out<T>(dscore)};
      AK_DISPATCH(attention_pool_backward<T>(given.of<T>(), data<T>(weights), gradients));
    });
  return {dh, dweight, dbias, dscore};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("attention_pool", TORCH_BOX(&attention_pool));
  m.impl("attention_pool_backward", TORCH_BOX(&attention_pool_backward));
}

}  // namespace ak::bind
