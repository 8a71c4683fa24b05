// predefined_concepts for the CPU key.
#include "../cpu/predefined_concepts.h"

#include <limits>

#include "days.h"

namespace ak::bind {
namespace {

// What belongs to whom: membership [stocks, concepts] and the row of it that each of n rows has.
class Membership {
 public:
  Membership(const char* op, const Tensor& membership, const OptionalTensor& rows, const Tensor& like) {
    check_same(op, "membership", membership, like);
    STD_TORCH_CHECK(membership.dim() == 2 && membership.size(1) <= std::numeric_limits<int32_t>::max(), op,
                    ": membership must be [stocks, concepts]");
    membership_ = dense(membership);
    if (!rows.has_value()) return;
    STD_TORCH_CHECK(rows->is_cpu() && rows->scalar_type() == ScalarType::Long && rows->dim() == 1, op, ": rows must be int64 [stocks]");
    rows_ = dense(rows);
    const int64_t* p = this->rows();
    for (int64_t i = 0; i < stocks(); ++i)
      STD_TORCH_CHECK(p[i] >= 0 && p[i] < membership_->size(0), op, ": rows must be from 0 to ", membership_->size(0) - 1);
  }
  int64_t stocks() const { return rows_.has_value() ? rows_->numel() : membership_->size(0); }
  int64_t concepts() const { return membership_->size(1); }
  const int64_t* rows() const { return data<int64_t>(rows_); }
  template <class T>
  const T* data_of() const {
    return data<T>(membership_);
  }

 private:
  OptionalTensor membership_, rows_;
};

std::tuple<Tensor, Tensor> predefined_concepts(const Tensor& x_in, const Tensor& membership, const OptionalTensor& offsets,
                                               const OptionalTensor& rows) {
  const char* op = "predefined_concepts";
  check_float(op, "x", x_in);
  const Membership member(op, membership, rows, x_in);
  STD_TORCH_CHECK(x_in.dim() == 2 && x_in.size(0) == member.stocks() && x_in.size(0) <= std::numeric_limits<int32_t>::max(), op,
                  ": x must be [", member.stocks(), ", hidden]");
  const Days days(op, offsets, x_in.size(0));
  const Tensor x = dense(x_in), result = empty(x, {days.count() * member.concepts(), x.size(1)});
  const Tensor size = empty(x, {days.count(), member.concepts()});
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(predefined_concepts<T>(data<T>(x), member.data_of<T>(), days.begin(), member.rows(), days.count(), member.concepts(),
                                       x.size(1), out<T>(result), out<T>(size)));
  });
  return {result, size};
}

Tensor predefined_concepts_backward(const Tensor& grad_in, const Tensor& membership, const OptionalTensor& offsets,
                                    const OptionalTensor& rows, const Tensor& size_in) {
  const char* op = "predefined_concepts_backward";
  check_float(op, "grad", grad_in);
  const Membership member(op, membership, rows, grad_in);
  const Days days(op, offsets, member.stocks());
  STD_TORCH_CHECK(grad_in.dim() == 2 && grad_in.size(0) == days.count() * member.concepts(), op, ": grad must be [",
                  days.count() * member.concepts(), ", hidden]");
  check_columns(op, "size", size_in, grad_in, days.count() * member.concepts());
  const Tensor grad = dense(grad_in), size = dense(size_in), dx = empty(grad, {member.stocks(), grad.size(1)});
  for_dtype(grad, [&](auto type) {
    using T = decltype(type);
    AK_DISPATCH(predefined_concepts_backward<T>(data<T>(grad), member.data_of<T>(), days.begin(), member.rows(), days.count(),
                                                member.concepts(), grad.size(1), data<T>(size), out<T>(dx)));
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) {
  m.impl("predefined_concepts", TORCH_BOX(&predefined_concepts));
  m.impl("predefined_concepts_backward", TORCH_BOX(&predefined_concepts_backward));
}

}  // namespace ak::bind
