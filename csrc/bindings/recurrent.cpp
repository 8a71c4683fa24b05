// recurrent for the CPU key.
#include "../cpu/recurrent.h"

#include <string>

#include "kept.h"

namespace ak::bind {
namespace {

// [B, T, columns] of a tensor that is [T, B, columns] unless batch_first.
template <class T>
SequenceView<T> view(const OptionalTensor& t, bool batch_first) {
  if (!t.has_value() || t->numel() == 0) return {nullptr, 0, 0, 1};
  return {static_cast<T*>(t->data_ptr()), t->stride(batch_first ? 0 : 1), t->stride(batch_first ? 1 : 0), t->stride(2)};
}

// The arguments that forward and backward have in common, checked once.
struct Recurrent {
  bool lstm, batch_first;
  Tensor x;  // read in whatever layout it has
  OptionalTensor h0, c0;
  std::vector<Tensor> weights;
  size_t per_layer;
  uint64_t seed;
  double dropout;
  RecurrentSizes sizes;

  Recurrent(const char* op, const Tensor& x_in, const OptionalTensor& h0_in, const OptionalTensor& c0_in,
            const std::vector<Tensor>& weights_in, const OptionalTensor& seed_in, const std::string& cell, bool biases,
            bool batch_first_in, double dropout_in)
      : lstm(cell == "lstm"), batch_first(batch_first_in), x(x_in), h0(dense(h0_in)), c0(dense(c0_in)), per_layer(biases ? 4 : 2),
        seed(0), dropout(seed_in.has_value() ? dropout_in : 0) {
    STD_TORCH_CHECK(lstm || cell == "gru", op, ": cell must be 'gru' or 'lstm', got ", cell);
    check_float(op, "x", x);
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3, op, ": x must be a CPU tensor of three dimensions");
    STD_TORCH_CHECK(!weights_in.empty() && weights_in.size() % per_layer == 0 && weights_in[1].dim() == 2, op,
                    ": weights must be ", per_layer, " tensors a layer");
    for (const Tensor& w : weights_in) weights.push_back(dense(w));
    const int64_t layers = static_cast<int64_t>(weights.size() / per_layer);
    sizes = {x.size(batch_first ? 0 : 1), x.size(batch_first ? 1 : 0), x.size(2), weights[1].size(1), layers};
    const int64_t rows = (lstm ? 4 : 3) * sizes.hidden, state = layers * sizes.batch * sizes.hidden;
    STD_TORCH_CHECK(sizes.steps > 0, op, ": x must be of at least one time step");
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t width = sizes.width(static_cast<int64_t>(i / per_layer)), of_row[4] = {width, sizes.hidden, 1, 1};
      check_columns(op, "weights", weights[i], x, rows * of_row[i % per_layer]);
    }
    check_columns(op, "h0", h0, x, state);
    check_columns(op, "c0", c0, x, state);
    if (seed_in.has_value()) {
      STD_TORCH_CHECK(seed_in->is_cpu() && seed_in->scalar_type() == ScalarType::Long && seed_in->numel() == 1, op,
                      ": seed must be one int64 on the CPU");
      seed = static_cast<uint64_t>(*data<int64_t>(*seed_in));
    }
  }

  template <class T>
  std::vector<RecurrentLayer<T>> layers() const {
    std::vector<RecurrentLayer<T>> found;
    for (size_t i = 0; i < weights.size(); i += per_layer)
      found.push_back({data<T>(weights[i]), data<T>(weights[i + 1]), per_layer == 4 ? data<T>(weights[i + 2]) : nullptr,
                       per_layer == 4 ? data<T>(weights[i + 3]) : nullptr});
    return found;
  }
  template <class T>
  RecurrentArguments<T> arguments(const std::vector<RecurrentLayer<T>>& layers) const {
    return {sizes, layers.data(), view<const T>(x, batch_first), data<T>(h0), data<T>(c0), seed, dropout};
  }
  // What is read by `view`: as many elements in another shape would be read beyond their end.
  void check_sequence(const char* op, const char* what, const OptionalTensor& t) const {
    if (!t.has_value() || t->numel() == 0) return;
    check_same(op, what, *t, x);
    STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == x.size(0) && t->size(1) == x.size(1) && t->size(2) == sizes.hidden, op, ": ", what,
                    " must be of shape [", x.size(0), ", ", x.size(1), ", ", sizes.hidden, "]");
  }
  bool anything() const { return sizes.batch > 0 && sizes.hidden > 0; }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> recurrent(const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0,
                                                             std::vector<Tensor> weights, const OptionalTensor& seed,
                                                             std::string cell, bool biases, bool batch_first, bool sequence,
                                                             double dropout, bool keep) {
  const Recurrent r("recurrent", x, h0, c0, weights, seed, cell, biases, batch_first, dropout);
  const auto [batch, steps, input, hidden, layers] = r.sizes;
  const int64_t shown = sequence ? steps : 0, unseen = layers - (sequence ? 1 : 0);
  const Tensor output = batch_first ? empty(x, {batch, shown, hidden}) : empty(x, {shown, batch, hidden});
  const Tensor h_n = empty(x, {layers, batch, hidden}), c_n = r.lstm ? empty(x, {layers, batch, hidden}) : empty(x, {0});
  const Tensor gates = keep ? empty_kept(x, {layers, steps, batch, 4 * hidden}) : empty(x, {0});
  const Tensor states = keep ? empty_kept(x, {unseen + (r.lstm ? layers : 0), steps, batch, hidden}) : empty(x, {0});
  if (r.anything())
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      const auto list = r.layers<T>();
      const RecurrentKept<T> kept{out<T>(gates), out<T>(states),
                                  keep && r.lstm ? out<T>(states) + unseen * steps * batch * hidden : nullptr};
      AK_DISPATCH(recurrent<T>(r.lstm, r.arguments<T>(list), view<T>(output, batch_first), out<T>(h_n), out<T>(c_n), kept));
    });
  return {output, h_n, c_n, gates, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n_in, const OptionalTensor& grad_c_n_in, const Tensor& x,
    const OptionalTensor& h0, const OptionalTensor& c0, std::vector<Tensor> weights, const Tensor& output, const Tensor& gates_in,
    const Tensor& states_in, const OptionalTensor& seed, std::string cell, bool biases, bool batch_first, double dropout,
    bool x_needs_grad) {
  const char* op = "recurrent_backward";
  const Recurrent r(op, x, h0, c0, weights, seed, cell, biases, batch_first, dropout);
  const auto [batch, steps, input, hidden, layers] = r.sizes;
  const Tensor gates = dense(gates_in), states = dense(states_in);
  const OptionalTensor grad_h_n = dense(grad_h_n_in), grad_c_n = dense(grad_c_n_in);
  const int64_t sequence = batch * steps * hidden, unseen = layers - (output.numel() > 0 ? 1 : 0);
  check_columns(op, "gates", gates, x, layers * 4 * sequence);
  check_columns(op, "states", states, x, (unseen + (r.lstm ? layers : 0)) * sequence);
  r.check_sequence(op, "output", output);
  check_columns(op, "grad_output", grad_output, x, output.numel());
  r.check_sequence(op, "grad_output", grad_output);
  check_columns(op, "grad_h_n", grad_h_n, x, layers * batch * hidden);
  check_columns(op, "grad_c_n", grad_c_n, x, r.lstm ? layers * batch * hidden : 0);
  int64_t parameters = 0;
  for (const Tensor& w : r.weights) parameters += w.numel();
  const Tensor dx = x_needs_grad ? batch_first ? empty(x, {batch, steps, input}) : empty(x, {steps, batch, input}) : empty(x, {0});
  const auto initial = [&, layers = layers, batch = batch, hidden = hidden](const OptionalTensor& state) {
    return state.has_value() ? empty(x, {layers, batch, hidden}) : empty(x, {0});
  };
  const Tensor dh0 = initial(r.h0), dc0 = initial(r.c0);
  const Tensor dweights = empty(x, {parameters});
  if (!r.anything())
    zero({dweights});
  else
    for_dtype(x, [&](auto t) {
      using T = decltype(t);
      const auto list = r.layers<T>();
      const RecurrentKept<const T> kept{data<T>(gates), data<T>(states), r.lstm ? data<T>(states) + unseen * sequence : nullptr};
      const RecurrentGradients<T> gradients{view<const T>(grad_output, batch_first), data<T>(grad_h_n), data<T>(grad_c_n),
                                            view<T>(dx, batch_first), out<T>(dh0), out<T>(dc0), out<T>(dweights)};
      AK_DISPATCH(recurrent_backward<T>(r.lstm, r.arguments<T>(list), view<const T>(output, batch_first), kept, gradients));
    });
  return {dx, dh0, dc0, dweights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("recurrent", TORCH_BOX(&recurrent));
  m.impl("recurrent_backward", TORCH_BOX(&recurrent_backward));
}

}  // namespace ak::bind
