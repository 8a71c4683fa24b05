// What the encoder layer does to one group of samples, in one thread's cache: the weights as the products read them, the group's
// scratch, and the passes over its rows.
#pragma once

#include "encoder_attention.h"
#include "encoder_ffn.h"
#include "local_encoder_layer.h"

namespace ak::AK_ISA {
namespace {

// Samples go through in groups of about this many tokens: their intermediates stay in L2 beside a chunk of hidden values.
constexpr int64_t kGroupTokens = 256;

template <class T>
int64_t group_samples(const EncoderLayer<T>& layer) {
  return std::max<int64_t>(1, kGroupTokens / std::max<int64_t>(layer.steps, 1));
}

// Hands out pieces of one allocation, each on a cache line.
template <class T>
struct Pieces {
  T* next;
  static int64_t size(int64_t count) { return round_up(count, 64); }
  T* take(int64_t count) {
    T* piece = next;
    next += size(count);
    return piece;
  }
};

// The weights packed, once a call: operands of the forward products and, for backward, of the products that return gradients.
template <class T>
class PackedWeights {
 public:
  PackedWeights(const EncoderLayer<T>& layer, bool backward) : storage_(total(layer, backward)) {
    const int64_t d = layer.width, f = layer.hidden, columns = round_up(f, kPanel<T>);
    const EncoderParameters<const T>& w = layer.weights;
    Pieces<T> pieces{storage_};
    in = pieces.take(packed_size<T>(d, 3 * d));
    out = pieces.take(packed_size<T>(d, d));
    up = pieces.take(packed_size<T>(d, f));
    down = pieces.take(packed_size<T>(f, d));
    bias1 = pieces.take(columns);
    pack_transposed<T>(w.in_weight, d, d, 3 * d, in);
    pack_transposed<T>(w.out_weight, d, d, d, out);
    pack_transposed<T>(w.weight1, d, d, f, up);
    pack_transposed<T>(w.weight2, f, f, d, down);
    std::copy(w.bias1, w.bias1 + f, bias1);
    std::fill(bias1 + f, bias1 + columns, T{0});
    if (w.conv_weight != nullptr) {  // element (tap * d + channel in, channel out)
      conv = pieces.take(packed_size<T>(3 * d, d));
      pack_panels(3 * d, d, conv, [&](int64_t k, int64_t j) { return w.conv_weight[(j * d + k % d) * 3 + k / d]; });
    }
    if (!backward) return;
    in_back = pieces.take(packed_size<T>(3 * d, d));
    out_back = pieces.take(packed_size<T>(d, d));
    up_back = pieces.take(packed_size<T>(f, d));
    down_back = pieces.take(packed_size<T>(d, f));
    pack<T>(w.in_weight, d, 3 * d, d, in_back);
    pack<T>(w.out_weight, d, d, d, out_back);
    pack<T>(w.weight1, d, f, d, up_back);
    pack<T>(w.weight2, f, d, f, down_back);
    if (w.conv_weight != nullptr) {  // element (tap * d + channel out, channel in), the taps turned round
      conv_back = pieces.take(packed_size<T>(3 * d, d));
      pack_panels(3 * d, d, conv_back, [&](int64_t k, int64_t j) { return w.conv_weight[(k % d * d + j) * 3 + 2 - k / d]; });
    }
  }

  T *in, *out, *up, *down, *bias1, *conv = nullptr;
  T *in_back = nullptr, *out_back = nullptr, *up_back = nullptr, *down_back = nullptr, *conv_back = nullptr;

 private:
  static int64_t total(const EncoderLayer<T>& layer, bool backward) {
    const int64_t d = layer.width, f = layer.hidden;
    int64_t n = round_up(f, kPanel<T>) + 64;
    const auto add = [&](int64_t depth, int64_t columns) { n += Pieces<T>::size(packed_size<T>(depth, columns)); };
    add(d, 3 * d), add(d, d), add(d, f), add(f, d), add(3 * d, d);
    if (backward) add(3 * d, d), add(d, d), add(f, d), add(d, f), add(3 * d, d);
    return n;
  }
  Scratch<T> storage_;
};

// y = norm(z) * gamma + beta, row by row.
template <class T>
inline void norm_rows(const T* z, int64_t rows, int64_t d, const T* gamma, const T* beta, T eps, T* y) {
  for (int64_t i = 0; i < rows; ++i, z += d, y += d) {
    const T mean = sum_packs<T>(d, [&](auto pack, int64_t j) { return load<decltype(pack)>(z + j); }) / static_cast<T>(d);
    const T var = sum_packs<T>(d, [&](auto pack, int64_t j) {
                    const decltype(pack) c = load<decltype(pack)>(z + j) - mean;
                    return static_cast<decltype(pack)>(c * c);
                  }) / static_cast<T>(d);
    const T rstd = 1 / std::sqrt(var + eps);
    for_each_pack<T>(d, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      store(y + j, static_cast<P>((load<P>(z + j) - mean) * rstd * load<P>(gamma + j) + load<P>(beta + j)));
    });
  }
}

// dz of norm_rows from dy (which may be the same memory); dgamma and dbeta are added to.
template <class T>
inline void norm_rows_backward(const T* dy, const T* z, int64_t rows, int64_t d, const T* gamma, T eps, T* dz, T* dgamma, T* dbeta) {
  for (int64_t i = 0; i < rows; ++i, z += d, dy += d, dz += d) {
    const T count = static_cast<T>(d);
    const T mean = sum_packs<T>(d, [&](auto pack, int64_t j) { return load<decltype(pack)>(z + j); }) / count;
    const T var = sum_packs<T>(d, [&](auto pack, int64_t j) {
                    const decltype(pack) c = load<decltype(pack)>(z + j) - mean;
                    return static_cast<decltype(pack)>(c * c);
                  }) / count;
    const T rstd = 1 / std::sqrt(var + eps);
    const T sum = sum_packs<T>(d, [&](auto pack, int64_t j) {
                    using P = decltype(pack);
                    return static_cast<P>(load<P>(dy + j) * load<P>(gamma + j));
                  }) / count;
    const T dot = sum_packs<T>(d, [&](auto pack, int64_t j) {
                    using P = decltype(pack);
                    return static_cast<P>(load<P>(dy + j) * load<P>(gamma + j) * ((load<P>(z + j) - mean) * rstd));
                  }) / count;
    each_column_once<T>(d, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      const P x = (load<P>(z + j) - mean) * rstd, g = load<P>(dy + j);
      store(dgamma + j, static_cast<P>(load<P>(dgamma + j) + g * x));
      store(dbeta + j, static_cast<P>(load<P>(dbeta + j) + g));
      store(dz + j, static_cast<P>((g * load<P>(gamma + j) - sum - x * dot) * rstd));
    });
  }
}

template <class T>
inline void add_bias(T* rows_of, int64_t rows, int64_t n, const T* bias) {
  for (int64_t i = 0; i < rows; ++i, rows_of += n)
    each_column_once<T>(n, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      store(rows_of + j, static_cast<P>(load<P>(rows_of + j) + load<P>(bias + j)));
    });
}

template <class T>
inline void add_column_sums(const T* rows_of, int64_t rows, int64_t n, T* sums) {
  for (int64_t i = 0; i < rows; ++i, rows_of += n)
    each_column_once<T>(n, [&](auto pack, int64_t j) {
      using P = decltype(pack);
      store(sums + j, static_cast<P>(load<P>(sums + j) + load<P>(rows_of + j)));
    });
}

// sum may be a or b.
template <class T>
inline void add_elements(const T* a, const T* b, T* sum, int64_t n) {
  each_column_once<T>(n, [&](auto pack, int64_t j) {
    using P = decltype(pack);
    store(sum + j, static_cast<P>(load<P>(a + j) + load<P>(b + j)));
  });
}

// Runs groups of samples through the layer. Buffers hold one group: [tokens, ...].
template <class T>
class Group {
 public:
  Group(const EncoderLayer<T>& layer, const PackedWeights<T>& packed, bool backward)
      : layer_(layer), packed_(packed), samples_(std::min(group_samples(layer), std::max<int64_t>(layer.batch, 1))),
        rows_(samples_ * layer.steps), padded_(padded_rows(rows_)), drop_{layer.seed, layer.dropout},
        attention_{layer.steps, layer.width, layer.heads, layer.mask, drop_},
        ffn_{layer.width, layer.hidden, packed.up, packed.bias1, packed.down, packed.up_back, packed.down_back, drop_},
        scratch_(total(backward)) {
    const int64_t d = layer.width, wide = padded_ * d, step = layer.steps + 2;
    Pieces<T> pieces{scratch_};
    margins_ = pieces.take(samples_ * step * d);
    own_u_ = pieces.take(wide);
    s_ = pieces.take(wide);
    qkv_ = pieces.take(3 * wide);
    own_mixed_ = pieces.take(wide);
    own_sum1_ = pieces.take(wide);
    own_sum2_ = pieces.take(wide);
    a_ = pieces.take(wide);
    wide_ = pieces.take(padded_ * round_up(d, kPanel<T>));
    hidden_ = pieces.take((backward ? 2 : 1) * kHiddenPanels * padded_ * kPanel<T>);
    scores_ = pieces.take(backward ? attention_.backward_scratch() : attention_.forward_scratch());
    if (!backward) return;
    g_ = pieces.take(wide);
    dropped_ = pieces.take(wide);
    dqkv_ = pieces.take(3 * wide);
    tiles_a_ = pieces.take(rows_ * round_up(d, kTileRows));
    tiles_g_ = pieces.take(rows_ * round_up(d, kTileRows));
    right_ = pieces.take(packed_size<T>(rows_, 3 * d));
  }

  int64_t count() const { return (layer_.batch + samples_ - 1) / samples_; }

  // y [tokens of the group, d], or null: only what the backward pass needs.
  void forward(int64_t group, const T* x, const EncoderKept<T>& kept, T* y) {
    start(group, x, kept);
    attend();
    feed_forward();
    if (y != nullptr)
      norm_rows(sum2_, rows(), layer_.width, layer_.weights.gamma2, layer_.weights.beta2, layer_.eps, y + first_token() * layer_.width);
  }

  struct Sums {
    EncoderParameters<T> of;  // weight1 and weight2 by panels [panel][d][kPanel], bias1 by whole panels, conv_weight [out][tap][in]
  };
  void backward(int64_t group, const T* x, const EncoderKept<T>& kept, const T* grad, const T* grad_u, T* dx, const Sums& sums);

 private:
  int64_t total(bool backward) const {
    const int64_t d = layer_.width, wide = Pieces<T>::size(padded_ * d);
    int64_t n = Pieces<T>::size(samples_ * (layer_.steps + 2) * d) + 10 * wide + Pieces<T>::size(padded_ * round_up(d, kPanel<T>)) +
                Pieces<T>::size((backward ? 2 : 1) * kHiddenPanels * padded_ * kPanel<T>) +
                Pieces<T>::size(backward ? attention_.backward_scratch() : attention_.forward_scratch()) + 256;
    if (backward)
      n += 6 * wide + 2 * Pieces<T>::size(rows_ * round_up(d, kTileRows)) + Pieces<T>::size(packed_size<T>(rows_, 3 * d));
    return n;
  }

  int64_t here() const { return std::min(samples_, layer_.batch - first_); }
  int64_t rows() const { return here() * layer_.steps; }
  int64_t first_token() const { return first_ * layer_.steps; }

  // Points the group's intermediates into what is kept, or into scratch.
  void start(int64_t group, const T* x, const EncoderKept<T>& kept) {
    first_ = group * samples_;
    const int64_t at = first_token() * layer_.width;
    const auto place = [&](T* tensor, T* own) { return tensor != nullptr ? tensor + at : own; };
    x_ = x + at;
    u_ = place(kept.u, own_u_);
    mixed_ = place(kept.mixed, own_mixed_);
    sum1_ = place(kept.sum1, own_sum1_);
    sum2_ = place(kept.sum2, own_sum2_);
  }

  // Rows with one row of zeros before and after each sample: three taps of a token are 3 d neighbouring numbers.
  void with_margins(const T* from) {
    const int64_t d = layer_.width, n = layer_.steps * d;
    for (int64_t b = 0; b < here(); ++b) {
      T* to = margins_ + b * (n + 2 * d);
      std::fill(to, to + d, T{0});
      std::copy(from + b * n, from + (b + 1) * n, to + d);
      std::fill(to + n + d, to + n + 2 * d, T{0});
    }
  }
  // to [tokens, d] (+)= the three taps of margins_ times a packed [3d, d].
  void convolve(const T* weight, T* to, bool add) {
    const int64_t d = layer_.width, n = layer_.steps;
    for (int64_t b = 0; b < here(); ++b)
      multiply<T>(n, d, 3 * d, {margins_ + b * (n + 2) * d, d, 1}, weight, to + b * n * d, d, add);
  }

  void convolution() {
    if (packed_.conv == nullptr) return;
    with_margins(x_);
    convolve(packed_.conv, u_, false);
    add_bias(u_, rows(), layer_.width, layer_.weights.conv_bias);
  }

  // s = x + u and the projections of it.
  void project() {
    const int64_t d = layer_.width;
    const T* s = x_;
    if (packed_.conv != nullptr) {
      add_elements(x_, static_cast<const T*>(u_), s_, rows() * d);
      s = s_;
    }
    input_ = s;
    multiply<T>(rows(), 3 * d, d, {s, d, 1}, packed_.in, qkv_, 3 * d);
    add_bias(qkv_, rows(), 3 * d, layer_.weights.in_bias);
  }

  void dropout_rows(int64_t stream, T* values) {
    if (drop_.p <= 0) return;
    for (int64_t i = 0; i < rows(); ++i) drop_.apply(stream, first_token() + i, layer_.width, values + i * layer_.width);
  }

  void attend() {
    const int64_t d = layer_.width, n = layer_.steps;
    convolution();
    project();
    for (int64_t b = 0; b < here(); ++b)
      attention_forward(attention_, first_ + b, qkv_ + b * n * 3 * d, mixed_ + b * n * d, scores_);
    multiply<T>(rows(), d, d, {mixed_, d, 1}, packed_.out, sum1_, d);
    add_bias(sum1_, rows(), d, layer_.weights.out_bias);
    dropout_rows(1, sum1_);
    add_elements(input_, static_cast<const T*>(sum1_), sum1_, rows() * d);
  }

  // a [padded, d], the FFN's input; zero beyond the last token.
  void first_norm() {
    const int64_t d = layer_.width;
    norm_rows(sum1_, rows(), d, layer_.weights.gamma1, layer_.weights.beta1, layer_.eps, a_);
    std::fill(a_ + rows() * d, a_ + padded_rows(rows()) * d, T{0});
  }

  void feed_forward() {
    const int64_t d = layer_.width, stride = round_up(d, kPanel<T>);
    first_norm();
    ffn_forward(ffn_, first_token(), rows(), a_, wide_, hidden_);
    for (int64_t i = 0; i < rows(); ++i) {
      T* z = sum2_ + i * d;
      add_elements(static_cast<const T*>(wide_ + i * stride), layer_.weights.bias2, z, d);
      if (drop_.p > 0) drop_.apply(3, first_token() + i, d, z);
      add_elements(static_cast<const T*>(a_ + i * d), static_cast<const T*>(z), z, d);
    }
  }

  // c [n, k] += left [tokens, n]^T times right_ packed [tokens, k].
  void outer(const T* left, int64_t n, int64_t k, T* c) { multiply<T>(n, k, rows(), {left, 1, n}, right_, c, k, true); }

  const EncoderLayer<T>& layer_;
  const PackedWeights<T>& packed_;
  int64_t samples_, rows_, padded_, first_ = 0;
  Dropout drop_;
  Attention<T> attention_;
  Ffn<T> ffn_;
  Scratch<T> scratch_;
  T *margins_, *own_u_, *s_, *qkv_, *own_mixed_, *own_sum1_, *own_sum2_, *a_, *wide_, *hidden_, *scores_;
  T *g_ = nullptr, *dropped_ = nullptr, *dqkv_ = nullptr, *tiles_a_ = nullptr, *tiles_g_ = nullptr, *right_ = nullptr;
  const T *x_ = nullptr, *input_ = nullptr;
  T *u_ = nullptr, *mixed_ = nullptr, *sum1_ = nullptr, *sum2_ = nullptr;
};

template <class T>
void Group<T>::backward(int64_t group, const T* x, const EncoderKept<T>& kept, const T* grad, const T* grad_u, T* dx, const Sums& sums) {
  const int64_t d = layer_.width, n = layer_.steps;
  const EncoderParameters<T>& to = sums.of;
  start(group, x, kept);
  const bool again = kept.sum2 == nullptr;
  if (again) {
    attend();
    feed_forward();
  } else {
    if (kept.u == nullptr) convolution();
    project();
    first_norm();
  }
  const int64_t m = rows(), at = first_token() * d, padded = padded_rows(m), stride = round_up(d, kPanel<T>);

  // The second norm and the FFN: g is the gradient of sum2, then of a.
  std::copy(grad + at, grad + at + m * d, g_);
  norm_rows_backward(g_, sum2_, m, d, layer_.weights.gamma2, layer_.eps, g_, to.gamma2, to.beta2);
  const auto dropped = [&](int64_t stream) {  // the gradient behind a dropout
    std::copy(g_, g_ + m * d, dropped_);
    std::fill(dropped_ + m * d, dropped_ + padded * d, T{0});
    dropout_rows(stream, dropped_);
  };
  dropped(3);
  add_column_sums(dropped_, m, d, to.bias2);
  for (int64_t i = 0; i < m; ++i) {
    pack_row<kTileRows>(a_ + i * d, d, tiles_a_, m, i);
    pack_row<kTileRows>(dropped_ + i * d, d, tiles_g_, m, i);
  }
  ffn_backward(ffn_, first_token(), m, a_, dropped_, tiles_a_, tiles_g_, wide_, {to.weight1, to.weight2, to.bias1}, hidden_);
  for (int64_t i = 0; i < m; ++i) add_elements(static_cast<const T*>(g_ + i * d), static_cast<const T*>(wide_ + i * stride), g_ + i * d, d);

  // The first norm and attention: g is the gradient of sum1, then of s.
  norm_rows_backward(g_, sum1_, m, d, layer_.weights.gamma1, layer_.eps, g_, to.gamma1, to.beta1);
  dropped(1);
  add_column_sums(dropped_, m, d, to.out_bias);
  pack<T>(mixed_, d, m, d, right_);
  outer(dropped_, d, d, to.out_weight);
  multiply<T>(m, d, d, {dropped_, d, 1}, packed_.out_back, wide_, d);
  for (int64_t b = 0; b < here(); ++b)
    attention_backward(attention_, first_ + b, qkv_ + b * n * 3 * d, wide_ + b * n * d, dqkv_ + b * n * 3 * d, scores_);
  add_column_sums(dqkv_, m, 3 * d, to.in_bias);
  pack<T>(input_, d, m, d, right_);
  outer(dqkv_, 3 * d, d, to.in_weight);
  multiply<T>(m, d, 3 * d, {dqkv_, 3 * d, 1}, packed_.in_back, g_, d, true);

  if (packed_.conv == nullptr) {
    if (dx != nullptr) std::copy(g_, g_ + m * d, dx + at);
    return;
  }
  // s = x + u: the gradient of u is that of s and what came from outside.
  T* du = dropped_;
  if (grad_u != nullptr)
    add_elements(static_cast<const T*>(g_), grad_u + at, du, m * d);
  else
    std::copy(g_, g_ + m * d, du);
  add_column_sums(du, m, d, to.conv_bias);
  with_margins(x_);
  pack_panels(m, 3 * d, right_, [&](int64_t i, int64_t j) { return margins_[(i / n * (n + 2) + i % n) * d + j]; });
  outer(du, d, 3 * d, to.conv_weight);
  if (dx == nullptr) return;
  with_margins(du);
  convolve(packed_.conv_back, g_, true);
  std::copy(g_, g_ + m * d, dx + at);
}

}  // namespace
}  // namespace ak::AK_ISA
