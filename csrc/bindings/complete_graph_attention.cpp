// complete_graph_attention for the CPU key.
#include "../cpu/complete_graph_attention.h"

#include <limits>

#include "days.h"

namespace ak::bind {
namespace {

void check_arguments(const char* op, const Tensor& s, const Tensor& t, const Tensor& h) {
  check_float(op, "h", h);
  check_same(op, "s", s, h);
  check_same(op, "t", t, h);
  STD_TORCH_CHECK(h.dim() == 2 && s.dim() == 1 && t.dim() == 1 && s.size(0) == h.size(0) && t.size(0) == h.size(0), op,
                  ": s and t must be [stocks] and h [stocks, hidden]");
  STD_TORCH_CHECK(h.size(0) <= std::numeric_limits<int32_t>::max(), op, ": too many stocks");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> complete_graph_attention(const Tensor& s_in, const Tensor& t_in, const Tensor& h_in,
                                                                    const OptionalTensor& offsets, double negative_slope,
                                                                    bool keep) {
  const char* op = "complete_graph_attention";
  check_arguments(op, s_in, t_in, h_in);
  const int64_t rows = h_in.size(0), hidden = h_in.size(1);
  const Days days(op, offsets, rows);
  const Tensor s = dense(s_in), t = dense(t_in), h = dense(h_in);
  const Tensor result = empty(h, {rows, hidden}), slope = empty(h, {keep ? rows : 0, hidden});
  const std::vector<int64_t> pair = {2, rows};
  const Tensor scale = torch::stable::new_empty(h, pair, ScalarType::Double);
  const Tensor order = torch::stable::new_empty(h, pair, ScalarType::Int);
  for_dtype(h, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(complete_graph_attention<T>(data<T>(s), data<T>(t), data<T>(h), days.begin(), days.count(), rows, hidden,
                                            negative_slope, out<T>(result), out<T>(slope), out<double>(scale),
                                            out<int32_t>(order)));
  });
  return {result, slope, scale, order};
}

std::tuple<Tensor, Tensor, Tensor> complete_graph_attention_backward(const Tensor& grad_in, const Tensor& s_in, const Tensor& t_in,
                                                                     const Tensor& h_in, const OptionalTensor& offsets,
                                                                     double negative_slope, const Tensor& out_in,
                                                                     const Tensor& slope_in, const Tensor& scale_in,
                                                                     const Tensor& order_in) {
  const char* op = "complete_graph_attention_backward";
  check_arguments(op, s_in, t_in, h_in);
  const int64_t rows = h_in.size(0), hidden = h_in.size(1);
  check_columns(op, "grad", grad_in, h_in, rows * hidden);
  check_columns(op, "out", out_in, h_in, rows * hidden);
  check_columns(op, "slope", slope_in, h_in, rows * hidden);
  STD_TORCH_CHECK(scale_in.is_cpu() && scale_in.scalar_type() == ScalarType::Double && scale_in.numel() == 2 * rows, op,
                  ": scale must be float64 [2, stocks]");
  STD_TORCH_CHECK(order_in.is_cpu() && order_in.scalar_type() == ScalarType::Int && order_in.numel() == 2 * rows, op,
                  ": order must be int32 [2, stocks]");
  const Days days(op, offsets, rows);
  const Tensor grad = dense(grad_in), s = dense(s_in), t = dense(t_in), h = dense(h_in), forward = dense(out_in);
  const Tensor slope = dense(slope_in), scale = dense(scale_in), order = dense(order_in);
  for (int64_t half : {0, 1}) days.check_entries(op, "order", data<int32_t>(order) + half * rows, false);
  const Tensor ds = empty(h, {rows}), dt = empty(h, {rows}), dh = empty(h, {rows, hidden});
  for_dtype(h, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(complete_graph_attention_backward<T>(
        data<T>(grad), data<T>(s), data<T>(t), data<T>(h), days.begin(), days.count(), rows, hidden, negative_slope,
        data<T>(forward), data<T>(slope), data<double>(scale), data<int32_t>(order), out<T>(ds), out<T>(dt), out<T>(dh)));
  });
  return {ds, dt, dh};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("complete_graph_attention", TORCH_BOX(&complete_graph_attention));
  m.impl("complete_graph_attention_backward", TORCH_BOX(&complete_graph_attention_backward));
}

}  // namespace ak::bind
