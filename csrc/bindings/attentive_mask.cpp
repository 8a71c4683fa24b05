// attentive_mask for the CPU key.
#include "../cpu/attentive_mask.h"

#include "stable.h"

namespace ak::bind {
namespace {

std::tuple<Tensor, Tensor, Tensor> attentive_mask(const Tensor& logits_in, const Tensor& prior_in, double relax,
                                                  bool update_prior, double eps) {
  const char* op = "attentive_mask";
  check_float(op, "logits", logits_in);
  STD_TORCH_CHECK(logits_in.dim() == 2, op, ": logits must have 2 dimensions, got ", logits_in.dim());
  check_columns(op, "prior", prior_in, logits_in, logits_in.numel());
  const Tensor logits = dense(logits_in), prior = dense(prior_in);
  const int64_t rows = logits.size(0), n = logits.size(1);
  const Tensor mask = torch::stable::empty_like(logits), entropy = empty(logits, {rows}),
               new_prior = empty(logits, {update_prior ? rows : 0, n});
  if (logits.numel() > 0)
    for_dtype(logits, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(attentive_mask<T>(data<T>(logits), data<T>(prior), out<T>(mask), out<T>(entropy), out<T>(new_prior), rows,
                                    n, static_cast<T>(relax), static_cast<T>(eps)));
    });
  return {mask, entropy, new_prior};
}

std::tuple<Tensor, Tensor> attentive_mask_backward(const Tensor& grad_mask, const Tensor& grad_entropy,
                                                   const Tensor& grad_new_prior, const Tensor& logits_in,
                                                   const Tensor& prior_in, const Tensor& mask_in, double relax,
                                                   bool update_prior, double eps) {
  const char* op = "attentive_mask_backward";
  check_float(op, "logits", logits_in);
  const int64_t rows = logits_in.size(0), n = logits_in.size(1);
  check_columns(op, "grad_mask", grad_mask, logits_in, rows * n);
  check_columns(op, "grad_entropy", grad_entropy, logits_in, rows);
  if (update_prior) check_columns(op, "grad_new_prior", grad_new_prior, logits_in, rows * n);
  check_columns(op, "prior", prior_in, logits_in, rows * n);
  check_columns(op, "mask", mask_in, logits_in, rows * n);
  const Tensor gm = dense(grad_mask), ge = dense(grad_entropy), gp = dense(grad_new_prior),
               logits = dense(logits_in), prior = dense(prior_in), mask = dense(mask_in);
  const Tensor dlogits = torch::stable::empty_like(logits), dprior = torch::stable::empty_like(logits);
  if (logits.numel() > 0)
    for_dtype(logits, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(attentive_mask_backward<T>(data<T>(gm), data<T>(ge), update_prior ? data<T>(gp) : nullptr, data<T>(logits),
                                             data<T>(prior), data<T>(mask), out<T>(dlogits), out<T>(dprior), rows, n,
                                             static_cast<T>(relax), static_cast<T>(eps)));
    });
  return {dlogits, dprior};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("attentive_mask", TORCH_BOX(&attentive_mask));
  m.impl("attentive_mask_backward", TORCH_BOX(&attentive_mask_backward));
}

}  // namespace ak::bind
