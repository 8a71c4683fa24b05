// alpha158 for the CPU key.
#include "../cpu/alpha158.h"

#include "stable.h"

namespace ak::bind {
namespace {

constexpr int64_t kFields = 6, kFeatures = 158;

const int64_t* check_places(const char* what, const Tensor& t, int64_t count, int64_t limit) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Long && t.dim() == 1 && t.numel() == count, "alpha158: ", what,
                  " must be ", count, " int64 on the CPU");
  const int64_t* p = data<int64_t>(t);
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(p[i] >= 0 && p[i] < limit, "alpha158: ", what, " must lie in [0, ", limit, "), got ", p[i]);
  return p;
}

Tensor alpha158(const Tensor& bars_in, const Tensor& instrument_in, const Tensor& day_in, const Tensor& features_in) {
  STD_TORCH_CHECK(bars_in.is_cpu() && bars_in.scalar_type() == ScalarType::Double && bars_in.dim() == 3 && bars_in.size(0) == kFields,
                  "alpha158: bars must be float64 [6, instruments, days] on the CPU");
  const Tensor bars = dense(bars_in), instrument = dense(instrument_in), day = dense(day_in), features = dense(features_in);
  const int64_t instruments = bars.size(1), days = bars.size(2), rows = instrument.numel(), count = features.numel();
  const int64_t *s = check_places("instrument", instrument, rows, instruments), *t = check_places("day", day, rows, days);
  const int64_t* f = check_places("features", features, count, kFeatures);
  std::vector<int64_t> row(instruments * days, -1);
  for (int64_t i = 0; i < rows; ++i) {
    int64_t& here = row[s[i] * days + t[i]];
    STD_TORCH_CHECK(here < 0, "alpha158: each (instrument, day) must be asked for once, got (", s[i], ", ", t[i], ") again");
    here = i;
  }
  const std::vector<int64_t> shape{rows, count};
  const Tensor out = torch::stable::new_empty(bars, shape, ScalarType::Float);
  const int64_t bytes = out.numel() * static_cast<int64_t>(sizeof(float));
  if (bytes == 0) return out;
  if (bytes >= int64_t{1} << 21) advise_huge_pages(out.data_ptr(), static_cast<size_t>(bytes));
  AK_DISPATCH(alpha158(data<double>(bars), instruments, days, row.data(), f, count, static_cast<float*>(out.data_ptr())));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alphakernels, CPU, m) { m.impl("alpha158", TORCH_BOX(&alpha158)); }

}  // namespace ak::bind
