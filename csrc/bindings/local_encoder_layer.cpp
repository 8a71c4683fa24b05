// local_encoder_layer for the CPU key.
#include "../cpu/local_encoder_layer.h"

#include "stable.h"

namespace ak::bind {
namespace {

// The arguments that forward and backward have in common, checked once.
struct Layer {
  Tensor x;
  std::vector<Tensor> weights;
  OptionalTensor mask;
  uint64_t seed = 0;
  int64_t batch, steps, width, heads, hidden;
  double dropout, eps;
  bool conv;

  Layer(const char* op, const Tensor& x_in, const std::vector<Tensor>& weights_in, const OptionalTensor& mask_in,
        const OptionalTensor& seed_in, int64_t heads_in, double dropout_in, double eps_in)
      : x(dense(x_in)), mask(dense(mask_in)), heads(heads_in), dropout(seed_in.has_value() ? dropout_in : 0), eps(eps_in),
        conv(weights_in.size() == 14) {
    check_float(op, "x", x);
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3, op, ": x must be a CPU tensor of shape [B, T, d]");
    STD_TORCH_CHECK(conv || weights_in.size() == 12, op, ": weights must be 12 tensors, 14 with a convolution");
    STD_TORCH_CHECK(weights_in[4].dim() == 2, op, ": linear1_weight must be of shape [f, d]");
    batch = x.size(0), steps = x.size(1), width = x.size(2), hidden = weights_in[4].size(0);
    STD_TORCH_CHECK(heads > 0 && width % heads == 0, op, ": heads must divide d");
    const int64_t d = width, f = hidden;
    const int64_t numels[14] = {3 * d * d, 3 * d, d * d, d, f * d, f, d * f, d, d, d, d, d, 3 * d * d, d};
    for (size_t i = 0; i < weights_in.size(); ++i) {
      weights.push_back(dense(weights_in[i]));
      check_columns(op, "weights", weights[i], x, numels[i]);
    }
    check_columns(op, "mask", mask, x, steps * steps);
    if (seed_in.has_value()) {
      STD_TORCH_CHECK(seed_in->is_cpu() && seed_in->scalar_type() == ScalarType::Long && seed_in->numel() == 1, op,
                      ": seed must be one int64 on the CPU");
      seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed_in->data_ptr()));
    }
  }

  // Parameters in the order of `weights`, from fn(index).
  template <class P, class F>
  EncoderParameters<P> parameters(const F& fn) const {
    return {fn(0), fn(1), fn(2), fn(3), fn(4), fn(5), fn(6), fn(7), fn(8), fn(9), fn(10), fn(11),
            conv ? fn(12) : nullptr, conv ? fn(13) : nullptr};
  }
  template <class T>
  EncoderLayer<T> layer() const {
    return {batch, steps, width, heads, hidden, parameters<const T>([&](size_t i) { return data<T>(weights[i]); }),
            data<T>(mask), seed, dropout, static_cast<T>(eps)};
  }
  // u [B, T, d] or empty, kept [3, B, T, d] or empty.
  template <class T>
  EncoderKept<T> kept(const Tensor& u, const Tensor& rest) const {
    T* first = out<T>(rest);
    const int64_t n = x.numel();
    return {out<T>(u), first, first == nullptr ? nullptr : first + n, first == nullptr ? nullptr : first + 2 * n};
  }
};

std::tuple<Tensor, Tensor, Tensor> local_encoder_layer(const Tensor& x, const std::vector<Tensor>& weights, const OptionalTensor& mask,
                                                       const OptionalTensor& seed, int64_t heads, double dropout, double eps,
                                                       bool want_u, bool keep) {
  const Layer l("local_encoder_layer", x, weights, mask, seed, heads, dropout, eps);
  const bool u_wanted = l.conv && want_u;
  const Tensor y = empty(l.x, {l.batch, l.steps, l.width}), u = u_wanted ? empty(l.x, {l.batch, l.steps, l.width}) : empty(l.x, {0});
  const Tensor kept = keep ? empty(l.x, {3, l.batch, l.steps, l.width}) : empty(l.x, {0});
  for_dtype(l.x, [&](auto t) {
    using T = decltype(t);
    if (l.x.numel() > 0)
      AK_DISPATCH(local_encoder_layer<T>(l.layer<T>(), data<T>(l.x), out<T>(y), l.kept<T>(u, kept)));
  });
  return {y, u, kept};
}

std::tuple<Tensor, Tensor> local_encoder_layer_backward(const Tensor& grad_in, const OptionalTensor& grad_u_in, const Tensor& x,
                                                        const std::vector<Tensor>& weights, const OptionalTensor& mask,
                                                        const OptionalTensor& seed, const Tensor& u_in, const Tensor& kept_in,
                                                        int64_t heads, double dropout, double eps, bool x_needs_grad) {
  const char* op = "local_encoder_layer_backward";
  const Layer l(op, x, weights, mask, seed, heads, dropout, eps);
  const int64_t n = l.x.numel();
  check_columns(op, "grad", grad_in, l.x, n);
  check_columns(op, "grad_u", grad_u_in, l.x, n);
  if (u_in.numel() > 0) check_columns(op, "u", u_in, l.x, n);
  if (kept_in.numel() > 0) check_columns(op, "kept", kept_in, l.x, 3 * n);
  const Tensor grad = dense(grad_in), u = dense(u_in), kept = dense(kept_in);
  const OptionalTensor grad_u = dense(grad_u_in);
  const Tensor dx = x_needs_grad ? empty(l.x, {l.batch, l.steps, l.width}) : empty(l.x, {0});
  int64_t total = 0;
  for (const Tensor& w : l.weights) total += w.numel();
  const Tensor flat = empty(l.x, {total});  // the parameters' gradients one after the other
  for_dtype(l.x, [&](auto t) {
    using T = decltype(t);
    T* next = out<T>(flat);
    T* starts[14] = {};
    for (size_t i = 0; i < l.weights.size(); ++i) {
      starts[i] = next;
      next += l.weights[i].numel();
    }
    const auto gradients = l.parameters<T>([&](size_t i) { return starts[i]; });
    if (n > 0)
      AK_DISPATCH(local_encoder_layer_backward<T>(l.layer<T>(), data<T>(l.x), data<T>(grad), data<T>(grad_u), l.kept<T>(u, kept),
                                                  out<T>(dx), gradients));
    else
      std::fill(starts[0], next, T{0});
  });
  return {dx, flat};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("local_encoder_layer", TORCH_BOX(&local_encoder_layer));
  m.impl("local_encoder_layer_backward", TORCH_BOX(&local_encoder_layer_backward));
}

}  // namespace ak::bind
