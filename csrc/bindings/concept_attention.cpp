// concept_attention and hidden_concepts for the CPU key.
#include "../cpu/concept_attention.h"

#include <limits>

#include "../cpu/hidden_concepts.h"
#include "days.h"

namespace ak::bind {
namespace {

void check_concepts(const char* op, const Tensor& x, const Tensor& c) {
  check_float(op, "x", x);
  check_same(op, "concepts", c, x);
  STD_TORCH_CHECK(x.dim() == 2 && c.dim() == 2 && x.size(1) == c.size(1), op, ": x must be [stocks, hidden], concepts [concepts, hidden]");
}

std::tuple<Tensor, Tensor> concept_attention(const Tensor& x_in, const Tensor& c_in, const OptionalTensor& offsets,
                                             const OptionalTensor& concept_offsets) {
  const char* op = "concept_attention";
  check_concepts(op, x_in, c_in);
  const Days days(op, offsets, x_in.size(0)), concept_days(op, concept_offsets, c_in.size(0));
  STD_TORCH_CHECK(days.count() == concept_days.count(), op, ": offsets and concept_offsets must be of the same days");
  const Tensor x = dense(x_in), c = dense(c_in), result = torch::stable::empty_like(x), total = empty(x, {x.size(0)});
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(concept_attention<T>(data<T>(x), data<T>(c), days.begin(), concept_days.begin(), days.count(), x.size(1),
                                     out<T>(result), out<T>(total)));
  });
  return {result, total};
}

std::tuple<Tensor, Tensor> concept_attention_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& c_in,
                                                      const OptionalTensor& offsets, const OptionalTensor& concept_offsets,
                                                      const Tensor& out_in, const Tensor& total_in) {
  const char* op = "concept_attention_backward";
  check_concepts(op, x_in, c_in);
  check_columns(op, "grad", grad_in, x_in, x_in.numel());
  check_columns(op, "out", out_in, x_in, x_in.numel());
  check_columns(op, "total", total_in, x_in, x_in.size(0));
  const Days days(op, offsets, x_in.size(0)), concept_days(op, concept_offsets, c_in.size(0));
  STD_TORCH_CHECK(days.count() == concept_days.count(), op, ": offsets and concept_offsets must be of the same days");
  const Tensor grad = dense(grad_in), x = dense(x_in), c = dense(c_in), forward = dense(out_in), total = dense(total_in);
  const Tensor dx = torch::stable::empty_like(x), dc = torch::stable::empty_like(c);
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(concept_attention_backward<T>(data<T>(grad), data<T>(x), data<T>(c), days.begin(), concept_days.begin(), days.count(),
                                              x.size(1), data<T>(forward), data<T>(total), out<T>(dx), out<T>(dc)));
  });
  return {dx, dc};
}

void check_stocks(const char* op, const Tensor& x) {
  check_float(op, "x", x);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) <= std::numeric_limits<int32_t>::max(), op, ": x must be [stocks, hidden]");
}

std::tuple<Tensor, Tensor, Tensor> hidden_concepts(const Tensor& x_in, const OptionalTensor& offsets) {
  const char* op = "hidden_concepts";
  check_stocks(op, x_in);
  const Days days(op, offsets, x_in.size(0));
  const Tensor x = dense(x_in), result = torch::stable::empty_like(x), value = empty(x, {x.size(0)});
  const Tensor choice = torch::stable::new_empty(x, std::vector<int64_t>{x.size(0)}, ScalarType::Int);
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(hidden_concepts<T>(data<T>(x), days.begin(), days.count(), x.size(1), out<T>(result), out<T>(value),
                                   out<int32_t>(choice)));
  });
  return {result, value, choice};
}

Tensor hidden_concepts_backward(const Tensor& grad_in, const Tensor& x_in, const OptionalTensor& offsets, const Tensor& value_in,
                                const Tensor& choice_in) {
  const char* op = "hidden_concepts_backward";
  check_stocks(op, x_in);
  check_columns(op, "grad", grad_in, x_in, x_in.numel());
  check_columns(op, "value", value_in, x_in, x_in.size(0));
  STD_TORCH_CHECK(choice_in.is_cpu() && choice_in.scalar_type() == ScalarType::Int && choice_in.numel() == x_in.size(0), op,
                  ": choice must be int32 [stocks]");
  const Days days(op, offsets, x_in.size(0));
  const Tensor grad = dense(grad_in), x = dense(x_in), value = dense(value_in), choice = dense(choice_in);
  days.check_entries(op, "choice", data<int32_t>(choice), true);
  const Tensor dx = torch::stable::empty_like(x);
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(hidden_concepts_backward<T>(data<T>(grad), data<T>(x), days.begin(), days.count(), x.size(1), data<T>(value),
                                            data<int32_t>(choice), out<T>(dx)));
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("concept_attention", TORCH_BOX(&concept_attention));
  m.impl("concept_attention_backward", TORCH_BOX(&concept_attention_backward));
  m.impl("hidden_concepts", TORCH_BOX(&hidden_concepts));
  m.impl("hidden_concepts_backward", TORCH_BOX(&hidden_concepts_backward));
}

}  // namespace ak::bind
