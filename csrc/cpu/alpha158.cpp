// Alpha158: all features of a piece of days of an instrument are made in cache, a feature after the other, then written day by day.
#include "alpha158.h"

#include <memory>

#include "../common/parallel.h"
#include "rolling.h"

namespace ak::AK_ISA {
namespace {

constexpr int64_t kPiece = 32;  // days
constexpr double kEps = 1e-12;

// In Alpha158's order: 13 of the day alone, then families of one a window.
enum Spot { KMID, KLEN, KMID2, KUP, KUP2, KLOW, KLOW2, KSFT, KSFT2, OPEN0, HIGH0, LOW0, VWAP0, kSpots };
enum Family { ROC, MA, STD, BETA, RSQR, RESI, MAX, MIN, QTLU, QTLD, RANK, RSV, IMAX, IMIN, IMXD, CORR, CORD, CNTP, CNTN, CNTD, SUMP, SUMN, SUMD,
              VMA, VSTD, WVMA, VSUMP, VSUMN, VSUMD, kFamilies };
constexpr int kFeatures = kSpots + kFamilies * kWindows;

struct Wanted {
  bool spot = false, family[kFamilies] = {};

  Wanted(const int64_t* features, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      if (features[j] < kSpots)
        spot = true;
      else
        family[(features[j] - kSpots) / kWindows] = true;
    }
  }
  template <class... F>
  bool any(F... f) const {
    return (family[f] || ...);
  }
};

// One instrument's series, and the features of one piece of its days.
class Instrument {
 public:
  Instrument(const Wanted& wanted, int64_t days)
      : wanted_(wanted), days_(days), padded_((days + kPiece - 1) / kPiece * kPiece) {}

  void read(const double* bars, int64_t field_stride);
  void make(int64_t start);
  const float* feature(int64_t f) const { return tile_[f]; }

 private:
  using Floats = Register<float, kRegisterBytes / 2>::type;

  void put(int feature, int64_t at, V v) { store(tile_[feature] + at, __builtin_convertvector(v, Floats)); }
  void put(Family family, int window, int64_t at, V v) { put(kSpots + family * kWindows + window, at, v); }

  void spot(int64_t t, int64_t at);
  void close(int64_t t, int64_t at);
  void order(int64_t start);
  void extremes(int64_t t, int64_t at);
  void volume(int64_t t, int64_t at);
  void correlation(int64_t t, int64_t at);
  void counts(int64_t t, int64_t at);
  void gains(const Column& changes, Family sum_up, int64_t t, int64_t at);

  const Wanted& wanted_;
  int64_t days_, padded_, first_ = 0;
  Line open_{padded_, kNaN}, high_{padded_, kNaN}, low_{padded_, kNaN}, close_{padded_, kNaN}, vwap_{padded_, kNaN}, volume_{padded_, kNaN};
  Line known_{padded_, kNaN}, highest_{padded_, -kInf}, lowest_{padded_, kInf};
  Column closes_{padded_}, volumes_{padded_}, weighted_{padded_}, changes_{padded_}, traded_{padded_};
  Column log_volume_{padded_}, ratio_{padded_}, log_ratio_{padded_};
  Pair level_{padded_}, growth_{padded_};
  Sorted<kDays[0]> sorted0_;
  Sorted<kDays[1]> sorted1_;
  Sorted<kDays[2]> sorted2_;
  Sorted<kDays[3]> sorted3_;
  Sorted<kDays[4]> sorted4_;
  alignas(64) float tile_[kFeatures][kPiece];
};

void Instrument::read(const double* bars, int64_t field_stride) {
  const double *open = bars, *high = open + field_stride, *low = high + field_stride, *close = low + field_stride,
               *vwap = close + field_stride, *volume = vwap + field_stride;
  first_ = days_;
  sorted0_.clear(), sorted1_.clear(), sorted2_.clear(), sorted3_.clear(), sorted4_.clear();
  const bool correlates = wanted_.any(CORR), grows = wanted_.any(CORD);
  for (int64_t t = 0; t < padded_; ++t) {
    const bool within = t < days_;
    const auto of = [&](const double* field) { return within ? field[t] : kNaN; };
    const double c = of(close), v = of(volume), c1 = t > 0 ? close_[t - 1] : kNaN, v1 = t > 0 ? volume_[t - 1] : kNaN;
    open_[t] = of(open), high_[t] = of(high), low_[t] = of(low), close_[t] = c, vwap_[t] = of(vwap), volume_[t] = v;
    if (first_ == days_ && !std::isnan(c)) first_ = t;
    known_[t] = std::isfinite(c) ? c : kNaN;
    highest_[t] = std::isfinite(high_[t]) ? high_[t] : -kInf;
    lowest_[t] = std::isfinite(low_[t]) ? low_[t] : kInf;
    closes_.set(t, c), volumes_.set(t, v), changes_.set(t, c - c1), traded_.set(t, v - v1);
    weighted_.set(t, std::abs(c / c1 - 1) * v);
    if (correlates) {
      const double log_volume = std::log(v + 1);
      log_volume_.set(t, log_volume), level_.set(t, c, log_volume);
    }
    if (grows) {
      const double log_ratio = std::log(v / v1 + 1);
      ratio_.set(t, c / c1), log_ratio_.set(t, log_ratio), growth_.set(t, c / c1, log_ratio);
    }
  }
}

void Instrument::make(int64_t start) {
  if (wanted_.any(QTLU, QTLD)) order(start);
  for (int64_t at = 0; at < kPiece; at += kLane) {
    const int64_t t = start + at;
    if (wanted_.spot) spot(t, at);
    if (wanted_.any(ROC, MA, STD, BETA, RSQR, RESI, RANK, CORR)) close(t, at);
    if (wanted_.any(MAX, MIN, RSV, IMAX, IMIN, IMXD)) extremes(t, at);
    if (wanted_.any(VMA, VSTD, WVMA)) volume(t, at);
    if (wanted_.any(CORR, CORD)) correlation(t, at);
    if (wanted_.any(CNTP, CNTN, CNTD)) counts(t, at);
    if (wanted_.any(SUMP, SUMN, SUMD)) gains(changes_, SUMP, t, at);
    if (wanted_.any(VSUMP, VSUMN, VSUMD)) gains(traded_, VSUMP, t, at);
  }
}

void Instrument::spot(int64_t t, int64_t at) {
  const V o = open_.at(t), h = high_.at(t), l = low_.at(t), c = close_.at(t), range = h - l + kEps;
  const V unknown = (o - o) + (c - c);  // NaN where one of the two is
  const V top = h - (o > c ? o : c) + unknown, bottom = (o < c ? o : c) - l + unknown, tilt = 2.0 * c - h - l;
  put(KMID, at, (c - o) / o), put(KLEN, at, (h - l) / o), put(KMID2, at, (c - o) / range);
  put(KUP, at, top / o), put(KUP2, at, top / range), put(KLOW, at, bottom / o), put(KLOW2, at, bottom / range);
  put(KSFT, at, tilt / o), put(KSFT2, at, tilt / range);
  put(OPEN0, at, o / c), put(HIGH0, at, h / c), put(LOW0, at, l / c), put(VWAP0, at, vwap_.at(t) / c);
}

void Instrument::close(int64_t t, int64_t at) {
  const V over = 1.0 / close_.at(t), now = known_.at(t);
  const Trend found = trend(closes_, t);
  for (int w = 0; w < kWindows; ++w) {
    put(ROC, w, at, close_.at(t - kDays[w]) * over);
    put(MA, w, at, found.mean[w] * over), put(STD, w, at, found.deviation[w] * over), put(BETA, w, at, found.slope[w] * over);
    put(RSQR, w, at, found.squared[w]), put(RESI, w, at, found.residual[w] * over);
  }
  V ranks[2] = {};  // how many are smaller, and as large
  nested(
      ranks,
      [&](V(&sum)[2], int k) {
        const V then = known_.at(t - k);
        sum[0] += then < now ? splat<V>(1.0) : V{}, sum[1] += then == now ? splat<V>(1.0) : V{};
      },
      [&](int w, const V(&sum)[2]) { put(RANK, w, at, (sum[0] + 0.5 * (sum[1] + 1.0) + (now - now)) / found.count[w]); });
}

void Instrument::order(int64_t start) {
  double high[kWindows][kPiece], low[kWindows][kPiece];
  const auto slide = [&](auto& sorted, int w) {
    for (int64_t at = 0; at < kPiece; ++at) {
      const int64_t t = start + at;
      sorted.move(known_[t - kDays[w]], known_[t]);
      high[w][at] = sorted.quantile(0.8), low[w][at] = sorted.quantile(0.2);
    }
  };
  slide(sorted0_, 0), slide(sorted1_, 1), slide(sorted2_, 2), slide(sorted3_, 3), slide(sorted4_, 4);
  for (int64_t at = 0; at < kPiece; at += kLane) {
    const V over = 1.0 / close_.at(start + at);
    for (int w = 0; w < kWindows; ++w) put(QTLU, w, at, load<V>(high[w] + at) * over), put(QTLD, w, at, load<V>(low[w] + at) * over);
  }
}

// The first of the highest, as its place in a window that begins with the instrument.
void Instrument::extremes(int64_t t, int64_t at) {
  const V c = close_.at(t), over = 1.0 / c;
  V day;
  for (int64_t i = 0; i < kLane; ++i) day[i] = static_cast<double>(t + i);
  V found[4] = {splat<V>(-kInf), V{}, splat<V>(kInf), V{}};  // the highest, days back, the lowest, days back
  nested(
      found,
      [&](V(&best)[4], int k) {
        const V high = highest_.at(t - k), low = lowest_.at(t - k), back = splat<V>(static_cast<double>(k));
        best[1] = high >= best[0] ? back : best[1], best[0] = maximum<V>(best[0], high);
        best[3] = low <= best[2] ? back : best[3], best[2] = minimum<V>(best[2], low);
      },
      [&](int w, const V(&best)[4]) {
        const V none_high = best[0] == -kInf ? splat<V>(kNaN) : V{}, none_low = best[2] == kInf ? splat<V>(kNaN) : V{};
        const V highest = best[0] + none_high, lowest = best[2] + none_low;
        const double days = kDays[w];
        const V begin = maximum<V>(splat<V>(static_cast<double>(first_)), day - (days - 1)), last = day - begin + 1.0;
        put(MAX, w, at, highest * over), put(MIN, w, at, lowest * over), put(RSV, w, at, (c - lowest) / (highest - lowest + kEps));
        put(IMAX, w, at, (last - best[1] + none_high) / days), put(IMIN, w, at, (last - best[3] + none_low) / days);
        put(IMXD, w, at, (best[3] - best[1] + none_high + none_low) / days);
      });
}

void Instrument::volume(int64_t t, int64_t at) {
  const V over = 1.0 / (volume_.at(t) + kEps);
  if (wanted_.any(VMA, VSTD)) {
    const Moments found = moments(volumes_, t);
    for (int w = 0; w < kWindows; ++w) put(VMA, w, at, found.mean[w] * over), put(VSTD, w, at, found.deviation[w] * over);
  }
  if (wanted_.any(WVMA)) {
    const Moments found = moments(weighted_, t);
    for (int w = 0; w < kWindows; ++w) put(WVMA, w, at, found.deviation[w] / (found.mean[w] + kEps));
  }
}

void Instrument::correlation(int64_t t, int64_t at) {
  const auto pair = [&](Family family, const Pair& both, const Column& left, const Column& right) {
    const Moments a = moments(left, t), b = moments(right, t);
    correlations(both, t, [&](int w, V found) {
      put(family, w, at, found + unknown_if_flat(a.deviation[w]) + unknown_if_flat(b.deviation[w]));
    });
  };
  if (wanted_.any(CORR)) pair(CORR, level_, closes_, log_volume_);
  if (wanted_.any(CORD)) pair(CORD, growth_, ratio_, log_ratio_);
}

// Shares of the days since the instrument's first.
void Instrument::counts(int64_t t, int64_t at) {
  V since;
  for (int64_t i = 0; i < kLane; ++i) since[i] = static_cast<double>(std::max<int64_t>(0, t + i - first_ + 1));
  V sums[2] = {};
  nested(
      sums,
      [&](V(&sum)[2], int k) {
        const V change = changes_.value.at(t - k);
        sum[0] += change > 0.0 ? splat<V>(1.0) : V{}, sum[1] += change < 0.0 ? splat<V>(1.0) : V{};
      },
      [&](int w, const V(&sum)[2]) {
        const V days = minimum<V>(splat<V>(static_cast<double>(kDays[w])), since);
        put(CNTP, w, at, sum[0] / days), put(CNTN, w, at, sum[1] / days), put(CNTD, w, at, (sum[0] - sum[1]) / days);
      });
}

// Sums of the gains and of the losses, over that of both.
void Instrument::gains(const Column& changes, Family sum_up, int64_t t, int64_t at) {
  V sums[3] = {};
  nested(
      sums,
      [&](V(&sum)[3], int k) {
        const V change = changes.value.at(t - k);
        sum[0] += changes.there.at(t - k);
        sum[1] += maximum<V>(V{}, change), sum[2] += maximum<V>(V{}, -change);
      },
      [&](int w, const V(&sum)[3]) {
        const V both = sum[1] + sum[2] + kEps + (sum[0] == 0.0 ? splat<V>(kNaN) : V{});
        const Family down = static_cast<Family>(sum_up + 1), difference = static_cast<Family>(sum_up + 2);
        put(sum_up, w, at, sum[1] / both), put(down, w, at, sum[2] / both), put(difference, w, at, (sum[1] - sum[2]) / both);
      });
}

}  // namespace

void alpha158(const double* bars, int64_t instruments, int64_t days, const int64_t* row, const int64_t* features, int64_t count,
              float* out) {
  const Wanted wanted(features, count);
  parallel_for(instruments, 1, [&](int64_t begin, int64_t end) {
    const auto one = std::make_unique<Instrument>(wanted, days);
    for (int64_t s = begin; s < end; ++s) {
      one->read(bars + s * days, instruments * days);
      for (int64_t start = 0; start < days; start += kPiece) {
        one->make(start);
        for (int64_t t = start; t < std::min(start + kPiece, days); ++t) {
          const int64_t at = row[s * days + t];
          if (at < 0) continue;
          float* to = out + at * count;
          for (int64_t j = 0; j < count; ++j) to[j] = one->feature(features[j])[t - start];
        }
      }
    }
  });
}

}  // namespace ak::AK_ISA
