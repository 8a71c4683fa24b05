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
  if (logits.numel() == 0)
    zero({entropy});
  else
    for_dtype(logits, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(attentive_mask<T>(data<T>(logits), data<T>(prior), out<T>(mask), out<T>(entropy), out<T>(new_prior), rows,
                                    n, static_cast<T>(relax), static_cast<T>(eps)));
    });
  return {mask, entropy, new_prior};
}

std::tuple<Tensor, Tensor> attentive_mask_backward(const Tensor& grad_mask, const OptionalTensor& grad_entropy,
                                                   const OptionalTensor& grad_new_prior, const Tensor& logits_in,
                                                   const Tensor& prior_in, const Tensor& mask_in, double relax, double eps,
                                                   bool prior_needs_grad) {
  const char* op = "attentive_mask_backward";
  check_float(op, "mask", mask_in);
  STD_TORCH_CHECK(mask_in.dim() == 2, op, ": mask must have 2 dimensions, got ", mask_in.dim());
  const int64_t rows = mask_in.size(0), n = mask_in.size(1);
  check_columns(op, "grad_mask", grad_mask, mask_in, rows * n);
  check_columns(op, "grad_entropy", grad_entropy, mask_in, rows);
  check_columns(op, "grad_new_prior", grad_new_prior, mask_in, rows * n);
  check_columns(op, "logits", logits_in, mask_in, rows * n);
  check_columns(op, "prior", prior_in, mask_in, rows * n);
  const Tensor gm = dense(grad_mask), logits = dense(logits_in), prior = dense(prior_in), mask = dense(mask_in);
  const OptionalTensor ge = dense(grad_entropy), gp = dense(grad_new_prior);
  const Tensor dlogits = torch::stable::empty_like(mask), dprior = empty(mask, {prior_needs_grad ? rows : 0, n});
  if (mask.numel() > 0)
    for_dtype(mask, [&](auto t) {
      using T = decltype(t);
      AK_DISPATCH(attentive_mask_backward<T>(data<T>(gm), data<T>(ge), data<T>(gp), data<T>(logits), data<T>(prior),
                                             data<T>(mask), out<T>(dlogits), out<T>(dprior), rows, n, static_cast<T>(relax),
                                             static_cast<T>(eps)));
    });
  return {dlogits, dprior};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("attentive_mask", TORCH_BOX(&attentive_mask));
  m.impl("attentive_mask_backward", TORCH_BOX(&attentive_mask_backward));
}

}  // namespace ak::bind
