// What every binding needs of PyTorch's stable ABI: argument checks that read like the Python ones, typed pointers, new
// tensors. Bindings know torch and no arithmetic; the kernels they call know arithmetic and no torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/huge_pages.h"

namespace ak::bind {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::headeronly::ScalarType;

inline void check_float(const char* op, const char* what, const Tensor& t) {
  const ScalarType s = t.scalar_type();
  STD_TORCH_CHECK(s == ScalarType::Float || s == ScalarType::Double, op, ": ", what,
                  " must be float32 or float64 for the CPU kernel");
}

inline void check_same(const char* op, const char* what, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == like.scalar_type(), op, ": ", what,
                  " must be a CPU tensor of the same dtype as the first argument");
}

inline void check_columns(const char* op, const char* what, const OptionalTensor& t, const Tensor& like, int64_t n) {
  if (!t.has_value()) return;
  check_same(op, what, *t, like);
  STD_TORCH_CHECK(t->numel() == n, op, ": ", what, " must have ", n, " elements, got ", t->numel());
}

inline OptionalTensor dense(const OptionalTensor& t) {
  return t.has_value() ? OptionalTensor(torch::stable::contiguous(*t)) : std::nullopt;
}
inline Tensor dense(const Tensor& t) { return torch::stable::contiguous(t); }

template <class T>
const T* data(const OptionalTensor& t) {
  return t.has_value() && t->numel() > 0 ? static_cast<const T*>(t->data_ptr()) : nullptr;
}
template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}
template <class T>
T* out(const Tensor& t) {
  return t.numel() > 0 ? static_cast<T*>(t.data_ptr()) : nullptr;
}

// Of an element of a float tensor.
inline int64_t item_bytes(const Tensor& t) { return t.scalar_type() == ScalarType::Double ? 8 : 4; }

// A fresh tensor. A large one is streamed through once, and would spend as long on page faults as on its numbers.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes) {
  const std::vector<int64_t> shape(sizes);
  const Tensor t = torch::stable::new_empty(like, shape);
  const int64_t bytes = t.numel() * item_bytes(t);
  if (bytes >= int64_t{1} << 21) advise_huge_pages(t.data_ptr(), static_cast<size_t>(bytes));
  return t;
}

// Zeros, for outputs that a kernel with nothing to sum would leave as they are.
inline void zero(std::initializer_list<Tensor> outputs) {
  for (Tensor t : outputs) torch::stable::zero_(t);
}

// f(T{}) with T the tensor's element type.
template <class F>
void for_dtype(const Tensor& t, const F& f) {
  if (t.scalar_type() == ScalarType::Double)
    f(double{});
  else
    f(float{});
}

}  // namespace ak::bind
