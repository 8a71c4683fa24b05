// Qlib's Alpha158: bars [6, instruments, days] are open, high, low, close, vwap and volume, NaN where there is none. row [instruments, days]
// is the row of out [rows, count] that holds a day's features, or negative; features [count] are places in Alpha158's order.
#pragma once

#include <cstdint>

#include "../common/isa.h"

AK_FOR_EACH_ISA(void alpha158(const double* bars, int64_t instruments, int64_t days, const int64_t* row, const int64_t* features,
                              int64_t count, float* out);)
