// The arithmetic of recurrent cells, one unit at a time: shared by the kernels of the CPU, where a unit is a pack of lanes, and of
// the GPU, where it is a float. M supplies sigmoid and tanh for packs P.
//
// Forward takes four sums, biases included, which collect the two matrix products x[g] = (W_ih x)[g] and h[g] = (W_hh h)[g], g in torch's
// order of gates: x[g] goes to sum g, h[g] to sum kSumOfH[g]. It keeps four values of a unit for the backward pass, which gives four
// gradients in an order of which the last kGates belong to `h` and the kGates from kFirstX on to `x`, so that both are one matrix
// without a gap.
#pragma once

#include <cstdint>

#include "host_device.h"

#ifndef AK_ISA
#define AK_ISA portable
#endif

namespace ak::AK_ISA {
namespace {

// torch.nn.GRU's gates: reset r, update z, new n.
//   r = sigmoid(x_r + h_r)   z = sigmoid(x_z + h_z)   n = tanh(x_n + r h_n)   h' = n + z (h - n)
struct GruCell {
  static constexpr int64_t kGates = 3;
  static constexpr bool kCellState = false;  // the hidden state is all there is
  static constexpr int64_t kSumOfH[3] = {0, 1, 3};
  // Gradients come as n, r, z, h_n: rows of W_ih as they meet them (torch's order is r, z, n), and of W_hh.
  static constexpr int64_t kFirstX = 0, kFirstH = 1;
  static constexpr int64_t kRowOfX[3] = {2, 0, 1}, kRowOfH[3] = {0, 1, 2};

  // `before` is h; returns h'. Keeps n, r, z, h_n.
  template <class M, class P>
  AK_HOST_DEVICE static P forward(const P (&sum)[4], P before, P& after, P (&kept)[4]) {
    kept[1] = M::sigmoid(sum[0]);
    kept[2] = M::sigmoid(sum[1]);
    kept[3] = sum[3];
    kept[0] = M::tanh(sum[2] + kept[1] * sum[3]);
    return after = kept[0] + kept[2] * (before - kept[0]);
  }

  // From dh, the gradient of h': the gradients of the sums inside the gates, and in `carried` the part of h's gradient that does
  // not pass through W_hh.
  template <class M, class P>
  AK_HOST_DEVICE static void backward(const P (&kept)[4], P before, P, P dh, P& carried, P (&grad)[4]) {
    const P n = kept[0], r = kept[1], z = kept[2];
    const P dn = dh * (1 - z) * (1 - n * n);
    grad[0] = dn;
    grad[1] = dn * kept[3] * r * (1 - r);
    grad[2] = dh * (before - n) * z * (1 - z);
    grad[3] = dn * r;
    carried = dh * z;
  }
};

// torch.nn.LSTM's gates: input i, forget f, cell g, output o.
//   i, f, o = sigmoid(x + h)   g = tanh(x_g + h_g)   c' = f c + i g   h' = o tanh(c')
struct LstmCell {
  static constexpr int64_t kGates = 4;
  static constexpr bool kCellState = true;
  static constexpr int64_t kSumOfH[4] = {0, 1, 2, 3};
  static constexpr int64_t kFirstX = 0, kFirstH = 0;
  static constexpr int64_t kRowOfX[4] = {0, 1, 2, 3}, kRowOfH[4] = {0, 1, 2, 3};

  // `before` is c, `after` c'; returns h'. Keeps i, f, g, o.
  template <class M, class P>
  AK_HOST_DEVICE static P forward(const P (&sum)[4], P before, P& after, P (&kept)[4]) {
    kept[0] = M::sigmoid(sum[0]);
    kept[1] = M::sigmoid(sum[1]);
    kept[2] = M::tanh(sum[2]);
    kept[3] = M::sigmoid(sum[3]);
    after = kept[1] * before + kept[0] * kept[2];
    return kept[3] * M::tanh(after);
  }

  // From dh and, in `carried`, the gradient of c' from later steps; leaves c's gradient in `carried`.
  template <class M, class P>
  AK_HOST_DEVICE static void backward(const P (&kept)[4], P before, P after, P dh, P& carried, P (&grad)[4]) {
    const P i = kept[0], f = kept[1], g = kept[2], o = kept[3];
    const P t = M::tanh(after);
    const P dc = carried + dh * o * (1 - t * t);
    grad[0] = dc * g * i * (1 - i);
    grad[1] = dc * before * f * (1 - f);
    grad[2] = dc * i * (1 - g * g);
    grad[3] = dh * t * o * (1 - o);
    carried = dc * f;
  }
};

}  // namespace
}  // namespace ak::AK_ISA
