// The days of a cross-section: offsets [days + 1] where there are several, or all rows as one.
#pragma once

#include "stable.h"

namespace ak::bind {

class Days {
 public:
  Days(const char* op, const OptionalTensor& offsets, int64_t rows) : whole_{0, rows} {
    if (!offsets.has_value()) return;
    STD_TORCH_CHECK(offsets->is_cpu() && offsets->scalar_type() == ScalarType::Long && offsets->dim() == 1 && offsets->numel() > 0,
                    op, ": offsets must be int64 [days + 1] on the CPU");
    offsets_ = dense(offsets);
    const int64_t* p = begin();
    STD_TORCH_CHECK(p[0] == 0 && p[count()] == rows, op, ": offsets must run from 0 to ", rows);
    for (int64_t d = 0; d < count(); ++d) STD_TORCH_CHECK(p[d] <= p[d + 1], op, ": offsets must not fall");
  }
  const int64_t* begin() const { return offsets_.has_value() ? data<int64_t>(*offsets_) : whole_; }
  int64_t count() const { return offsets_.has_value() ? offsets_->numel() - 1 : 1; }
  // That each row's entry is a row of the same day, or -1 where none is allowed: a kernel goes where it points.
  void check_entries(const char* op, const char* what, const int32_t* entries, bool or_none) const {
    const int64_t* p = begin();
    for (int64_t d = 0; d < count(); ++d) {
      bool within = true;
      for (int64_t i = p[d]; i < p[d + 1]; ++i) within &= (entries[i] >= p[d] && entries[i] < p[d + 1]) || (or_none && entries[i] == -1);
      STD_TORCH_CHECK(within, op, ": ", what, " must hold rows of the same day", or_none ? ", or -1" : "");
    }
  }

 private:
  int64_t whole_[2];
  OptionalTensor offsets_;
};

}  // namespace ak::bind
