#include "local_encoder_layer.h"

#include "../common/parallel.h"
#include "encoder_group.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kMaxParts = 16;  // of the batch, each with sums of its own; a cut by sizes alone

// The gradients' sums of one part, in the layouts that the kernel adds to.
template <class T>
struct SumSizes {
  int64_t d, f, panels;
  bool conv;
  explicit SumSizes(const EncoderLayer<T>& layer)
      : d(layer.width), f(layer.hidden), panels((layer.hidden + kPanel<T> - 1) / kPanel<T>), conv(layer.weights.conv_weight != nullptr) {}

  EncoderParameters<T> at(T* base) const {
    Pieces<T> pieces{base};
    EncoderParameters<T> p;
    p.in_weight = pieces.take(3 * d * d);
    p.in_bias = pieces.take(3 * d);
    p.out_weight = pieces.take(d * d);
    p.weight1 = pieces.take(panels * d * kPanel<T>);
    p.weight2 = pieces.take(panels * d * kPanel<T>);
    p.bias1 = pieces.take(panels * kPanel<T>);
    for (T** bias : {&p.out_bias, &p.bias2, &p.gamma1, &p.beta1, &p.gamma2, &p.beta2}) *bias = pieces.take(d);
    p.conv_weight = conv ? pieces.take(3 * d * d) : nullptr;
    p.conv_bias = conv ? pieces.take(d) : nullptr;
    return p;
  }
  int64_t total() const {
    int64_t n = 0;
    for (const int64_t size : {3 * d * d, 3 * d, d * d, panels * d * kPanel<T>, panels * d * kPanel<T>, panels * kPanel<T>})
      n += Pieces<T>::size(size);
    return n + (conv ? 7 : 6) * Pieces<T>::size(d) + (conv ? Pieces<T>::size(3 * d * d) : 0);
  }
};

}  // namespace

template <class T>
void local_encoder_layer(const EncoderLayer<T>& layer, const T* x, T* y, const EncoderKept<T>& kept) {
  const PackedWeights<T> packed(layer, false);
  const int64_t groups = (layer.batch + group_samples(layer) - 1) / group_samples(layer);
  parallel_for(groups, 1, [&](int64_t first, int64_t last) {
    Group<T> group(layer, packed, false);
    for (int64_t g = first; g < last; ++g) group.forward(g, x, kept, y);
  });
}

template <class T>
void local_encoder_layer_backward(const EncoderLayer<T>& layer, const T* x, const T* grad, const T* grad_u, const EncoderKept<T>& kept,
                                  T* dx, const EncoderParameters<T>& gradients) {
  const PackedWeights<T> packed(layer, true);
  const SumSizes<T> sizes(layer);
  const int64_t groups = (layer.batch + group_samples(layer) - 1) / group_samples(layer), size = sizes.total();
  const int64_t share = std::max<int64_t>(1, (groups + kMaxParts - 1) / kMaxParts), parts = std::max<int64_t>(1, (groups + share - 1) / share);
  Scratch<T> sums(parts * size);
  parallel_for(parts, 1, [&](int64_t first, int64_t last) {
    Group<T> group(layer, packed, true);
    for (int64_t part = first; part < last; ++part) {
      T* own = sums + part * size;
      std::fill(own, own + size, T{0});
      for (int64_t g = part * share; g < std::min(groups, (part + 1) * share); ++g)
        group.backward(g, x, kept, grad, grad_u, dx, {sizes.at(own)});
    }
  });
  parallel_for(size, 8192, [&](int64_t first, int64_t last) {
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = first; i < last; ++i) sums[i] += sums[part * size + i];
  });

  const EncoderParameters<T> from = sizes.at(sums);
  const int64_t d = layer.width, f = layer.hidden;
  std::copy(from.in_weight, from.in_weight + 3 * d * d, gradients.in_weight);
  std::copy(from.in_bias, from.in_bias + 3 * d, gradients.in_bias);
  std::copy(from.out_weight, from.out_weight + d * d, gradients.out_weight);
  std::copy(from.out_bias, from.out_bias + d, gradients.out_bias);
  std::copy(from.bias1, from.bias1 + f, gradients.bias1);
  std::copy(from.bias2, from.bias2 + d, gradients.bias2);
  std::copy(from.gamma1, from.gamma1 + d, gradients.gamma1);
  std::copy(from.beta1, from.beta1 + d, gradients.beta1);
  std::copy(from.gamma2, from.gamma2 + d, gradients.gamma2);
  std::copy(from.beta2, from.beta2 + d, gradients.beta2);
  for (int64_t j = 0; j < f; ++j) {
    const int64_t at = j / kPanel<T> * d * kPanel<T> + j % kPanel<T>;
    for (int64_t k = 0; k < d; ++k) {
      gradients.weight1[j * d + k] = from.weight1[at + k * kPanel<T>];
      gradients.weight2[k * f + j] = from.weight2[at + k * kPanel<T>];
    }
  }
  if (!sizes.conv) return;
  std::copy(from.conv_bias, from.conv_bias + d, gradients.conv_bias);
  for (int64_t row = 0; row < d; ++row)
    for (int64_t column = 0; column < d; ++column)
      for (int64_t tap = 0; tap < 3; ++tap)
        gradients.conv_weight[(row * d + column) * 3 + tap] = from.conv_weight[(row * 3 + tap) * d + column];
}

#define AK_INSTANTIATE(T)                                                                                                   \
  template void local_encoder_layer<T>(const EncoderLayer<T>&, const T*, T*, const EncoderKept<T>&);                         \
  template void local_encoder_layer_backward<T>(const EncoderLayer<T>&, const T*, const T*, const T*, const EncoderKept<T>&, T*, \
                                                const EncoderParameters<T>&);
AK_INSTANTIATE(float)
AK_INSTANTIATE(double)

}  // namespace ak::AK_ISA
