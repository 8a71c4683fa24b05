// Statistics of the last 5, 10, 20, 30 and 60 days of a series, many days side by side in the lanes of a register. The windows are nested:
// one walk back over 60 days passes the ends of all five. Every window is summed afresh, in float64, as differences from its last known
// value: nothing drifts, what is constant has no spread, and a missing day (NaN or infinite) counts nowhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../common/simd.h"

namespace ak::AK_ISA {
namespace {

constexpr int kWindows = 5;
constexpr int kDays[kWindows] = {5, 10, 20, 30, 60};
constexpr int kLongest = kDays[kWindows - 1];
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kFlat = 2e-5;  // a deviation below leaves correlation and R² unknown, as in Qlib

using V = Vec<double>;
constexpr int64_t kLane = kLanes<double>;

// Days of one instrument, from kLongest days before its first on.
class Line {
 public:
  Line(int64_t days, double before) : values_(kLongest + days, before) {}
  double& operator[](int64_t t) { return values_[kLongest + t]; }
  V at(int64_t t) const { return load<V>(values_.data() + kLongest + t); }

 private:
  std::vector<double> values_;
};

// What sums need of a series.
struct Column {
  Line value, there, last;  // 0 where there is none; 1 or 0; the last known value

  explicit Column(int64_t days) : value(days, 0), there(days, 0), last(days, 0) {}

  void set(int64_t t, double x) {
    const bool known = std::isfinite(x);
    value[t] = known ? x : 0;
    there[t] = known ? 1 : 0;
    last[t] = known ? x : last[t - 1];
  }
};

// add(sums, k) for every day k back; take(window, sums) where a window is complete.
template <int count, class Add, class Take>
inline __attribute__((always_inline)) void nested(V (&sums)[count], const Add& add, const Take& take) {
  int k = 0;
  for (int w = 0; w < kWindows; ++w) {
    for (; k < kDays[w]; ++k) add(sums, k);
    take(w, sums);
  }
}

inline V root(V v) {
  for (int64_t i = 0; i < kLane; ++i) v[i] = std::sqrt(v[i]);
  return v;
}

// The squared deviations from the mean, summed: of n values with these sums.
inline V spread(V n, V sum, V squares) { return maximum<V>(V{}, squares - sum * sum / n); }

inline V deviation(V n, V sum, V squares) { return root(spread(n, sum, squares) / (n - 1.0)); }

// NaN where the deviation is none to speak of, else 0.
inline V unknown_if_flat(V deviation) { return deviation <= kFlat ? splat<V>(kNaN) : V{}; }

struct Moments {
  V mean[kWindows], deviation[kWindows];
};

inline Moments moments(const Column& s, int64_t t) {
  const V last = s.last.at(t);
  Moments found;
  V sums[3] = {};
  nested(
      sums,
      [&](V(&sum)[3], int k) {
        const V there = s.there.at(t - k), y = (s.value.at(t - k) - last) * there;
        sum[0] += there, sum[1] += y, sum[2] += y * y;
      },
      [&](int w, const V(&sum)[3]) {
        found.mean[w] = last + sum[1] / sum[0];
        found.deviation[w] = deviation(sum[0], sum[1], sum[2]);
      });
  return found;
}

// The regression on time, besides the moments. The residual is the last day's, NaN where that has no value.
struct Trend {
  V count[kWindows], mean[kWindows], deviation[kWindows], slope[kWindows], squared[kWindows], residual[kWindows];
};

inline Trend trend(const Column& s, int64_t t) {
  const V last = s.last.at(t), unknown = s.there.at(t) == 0.0 ? splat<V>(kNaN) : V{};
  Trend found;
  V sums[6] = {};
  nested(
      sums,
      [&](V(&sum)[6], int k) {
        const double back = k;
        const V there = s.there.at(t - k), y = (s.value.at(t - k) - last) * there;
        sum[0] += there, sum[1] += y, sum[2] += y * y, sum[3] += back * there, sum[4] += back * back * there, sum[5] += back * y;
      },
      [&](int w, const V(&sum)[6]) {
        const V n = sum[0], yy = spread(n, sum[1], sum[2]), xx = sum[4] - sum[3] * sum[3] / n, xy = sum[3] * sum[1] / n - sum[5];
        found.count[w] = n;
        found.mean[w] = last + sum[1] / n;
        found.deviation[w] = deviation(n, sum[1], sum[2]);
        found.slope[w] = xy / xx;
        found.squared[w] = xy * xy / (xx * yy) + unknown_if_flat(found.deviation[w]);
        found.residual[w] = unknown - (sum[1] + found.slope[w] * sum[3]) / n;
      });
  return found;
}

// Two series on the days that both have.
struct Pair {
  Column left, right;

  explicit Pair(int64_t days) : left(days), right(days) {}

  void set(int64_t t, double a, double b) {
    const bool both = std::isfinite(a) && std::isfinite(b);
    left.set(t, both ? a : kNaN), right.set(t, both ? b : kNaN);
  }
};

template <class Take>
inline __attribute__((always_inline)) void correlations(const Pair& p, int64_t t, const Take& take) {
  const V a0 = p.left.last.at(t), b0 = p.right.last.at(t);
  V sums[6] = {};
  nested(
      sums,
      [&](V(&sum)[6], int k) {
        const V there = p.left.there.at(t - k);
        const V a = (p.left.value.at(t - k) - a0) * there, b = (p.right.value.at(t - k) - b0) * there;
        sum[0] += there, sum[1] += a, sum[2] += b, sum[3] += a * a, sum[4] += b * b, sum[5] += a * b;
      },
      [&](int w, const V(&sum)[6]) {
        const V n = sum[0], both = spread(n, sum[1], sum[3]) * spread(n, sum[2], sum[4]);
        take(w, (sum[5] - sum[1] * sum[2] / n) / root(both));
      });
}

// The values of one window in order.
template <int days>
class Sorted {
 public:
  void clear() { n_ = 0, std::fill(values_, values_ + kRoom, kInf); }

  // The day that leaves the window and the one that enters it; NaN for none.
  void move(double out, double in) {
    const bool leaves = !std::isnan(out), enters = !std::isnan(in);
    if (leaves && enters) {
      const int from = below(out), to = below(in);
      if (to > from) {
        shift(from, from + 1, to - 1 - from);
        values_[to - 1] = in;
      } else {
        shift(to + 1, to, from - to);
        values_[to] = in;
      }
    } else if (leaves) {
      const int from = below(out);
      shift(from, from + 1, --n_ - from);
      values_[n_] = kInf;
    } else if (enters) {
      const int to = below(in);
      shift(to + 1, to, n_++ - to);
      values_[to] = in;
    }
  }

  // Between the two nearest values, in proportion.
  double quantile(double share) const {
    if (n_ == 0) return kNaN;
    const double place = share * (n_ - 1);
    const int low = static_cast<int>(place), high = std::min(low + 1, n_ - 1);
    return values_[low] + (values_[high] - values_[low]) * (place - low);
  }

 private:
  static constexpr int kRoom = (days + 7) / 8 * 8;

  // How many values are smaller.
  int below(double x) const {
    IntPack<V, double>::type count = {};
    for (int i = 0; i < kRoom; i += kLane) count += load<V>(values_ + i) < x;
    int64_t total = 0;
    for (int64_t i = 0; i < kLane; ++i) total -= count[i];
    return static_cast<int>(total);
  }
  void shift(int to, int from, int count) { std::memmove(values_ + to, values_ + from, static_cast<size_t>(count) * sizeof(double)); }

  alignas(64) double values_[kRoom];
  int n_ = 0;
};

}  // namespace
}  // namespace ak::AK_ISA
