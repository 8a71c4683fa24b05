// Arguments that ghost_batch_norm and glu_block have in common: checked once, made contiguous, turned into pointers.
#pragma once

#include "../cpu/ghost_batch_norm.h"
#include "stable.h"

namespace ak::bind {

inline Chunks chunks_of(const char* op, int64_t rows, int64_t virtual_batch_size, bool training) {
  STD_TORCH_CHECK(virtual_batch_size >= 1, op, ": virtual_batch_size must be at least 1, got ", virtual_batch_size);
  return training ? Chunks::of(rows, virtual_batch_size) : Chunks{rows, rows, 1};
}

struct Norm {
  OptionalTensor weight, bias, running_mean, running_var, linear_bias;
  double momentum, eps;
  Chunks chunks;
  Tensor mean, rstd, new_running_mean, new_running_var;

  Norm(const char* op, const Tensor& x, int64_t n, const OptionalTensor& weight_in, const OptionalTensor& bias_in,
       const OptionalTensor& running_mean_in, const OptionalTensor& running_var_in, const OptionalTensor& linear_bias_in,
       int64_t virtual_batch_size, bool training, bool norm, double momentum_in, double eps_in)
      : weight(dense(weight_in)), bias(dense(bias_in)), running_mean(dense(running_mean_in)),
        running_var(dense(running_var_in)), linear_bias(dense(linear_bias_in)), momentum(momentum_in), eps(eps_in),
        chunks(chunks_of(op, x.size(0), virtual_batch_size, training)), mean(empty(x, {norm ? chunks.count : 0, n})),
        rstd(empty(x, {norm ? chunks.count : 0, n})),
        new_running_mean(empty(x, {training && running_mean_in.has_value() ? n : 0})),
        new_running_var(empty(x, {training && running_mean_in.has_value() ? n : 0})) {
    check_columns(op, "weight", weight, x, n);
    check_columns(op, "bias", bias, x, n);
    check_columns(op, "running_mean", running_mean, x, n);
    check_columns(op, "running_var", running_var, x, n);
    check_columns(op, "linear_bias", linear_bias, x, n);
    STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(), op,
                    ": running_mean and running_var must be given together");
    STD_TORCH_CHECK(!training || (x.size(0) > 1 && chunks.size > 1), op,
                    ": training needs more than one row in every virtual batch, got ", x.size(0),
                    " rows and virtual_batch_size ", virtual_batch_size);
  }

  template <class T>
  NormInputs<T> inputs() const {
    return {data<T>(weight), data<T>(bias), data<T>(running_mean), data<T>(running_var), data<T>(linear_bias), momentum, eps};
  }
  template <class T>
  NormState<T> state() const {
    return {out<T>(mean), out<T>(rstd), out<T>(new_running_mean), out<T>(new_running_var)};
  }
};

}  // namespace ak::bind
