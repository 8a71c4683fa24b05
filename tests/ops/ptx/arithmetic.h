// The instructions that compute a register from others of the same lane: a table from their PTX names to functions of a lane's values.
// What an instruction says of its types is in the types of its function. Approximations (ex2, sqrt, div) are computed exactly.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/numbers.h"
#include "machine.h"

namespace ak::ptx {

using cuda::Bfloat16;
using cuda::Float16;
using cuda::rounded;
using cuda::to_float;

template <class Compute, class Result, class... Operands, size_t... index>
Operation by_lane(Compute compute, Result (Compute::*)(Operands...) const, std::index_sequence<index...>) {
  const auto execute = [compute](Machine& machine, const Instruction& instruction) {
    uint64_t* to = machine.lanes(instruction.destinations[0]);
    const uint64_t* from[] = {machine.lanes(instruction.sources[index])...};
    machine.for_each_lane(instruction, [&](int lane) { to[lane] = slot_of<Result>(compute(value_of<Operands>(from[index][lane])...)); });
  };
  return {execute, sizeof...(Operands)};
}
template <class Compute, class Result, class... Operands>
Operation by_lane(Compute compute, Result (Compute::*call)(Operands...) const) {
  return by_lane(compute, call, std::index_sequence_for<Operands...>());
}
template <class Compute>
Operation by_lane(Compute compute) {
  return by_lane(compute, &Compute::operator());
}

inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// The number where the other is NaN, and +0 over -0.
template <class T>
T larger(T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}

// Zero for a large divisor, as PTX has it.
inline float approximate_quotient(float a, float b) {
  const bool large = std::fabs(b) > 0x1p126f && std::isfinite(b);
  if (!large) return a / b;
  return std::isfinite(a) ? std::copysign(0.0f, a) * std::copysign(1.0f, b) : std::numeric_limits<float>::quiet_NaN();
}

// Bits `begin` to `begin + count` of `a`; past the last bit there are copies of the sign, or zeros.
template <class T>
T bit_field(T a, uint32_t begin, uint32_t count) {
  begin &= 255;
  count &= 255;
  if (count == 0) return 0;
  const int64_t shifted = begin > 31 ? (a < 0 ? -1 : 0) : static_cast<int64_t>(a) >> begin;
  if (count >= 32) return static_cast<T>(shifted);
  const uint64_t kept = static_cast<uint64_t>(shifted) << (64 - count);
  return std::is_signed_v<T> ? static_cast<T>(static_cast<int64_t>(kept) >> (64 - count)) : static_cast<T>(kept >> (64 - count));
}

// Each of the four bytes that `selector` names, or its sign alone, out of the eight of a and b.
inline uint32_t permuted_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> 4 * i & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (choice & 7)) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

// add, sub, mul.lo and mad.lo wrap around; a division by zero gives what a GPU gives, all bits set.
template <class T>
void add_integers(Operations& table, const std::string& type) {
  using Unsigned = std::make_unsigned_t<T>;
  table["add." + type] = by_lane([](Unsigned a, Unsigned b) { return static_cast<Unsigned>(a + b); });
  table["sub." + type] = by_lane([](Unsigned a, Unsigned b) { return static_cast<Unsigned>(a - b); });
  table["neg." + type] = by_lane([](Unsigned a) { return static_cast<Unsigned>(-a); });
  table["mul.lo." + type] = by_lane([](Unsigned a, Unsigned b) { return static_cast<Unsigned>(a * b); });
  table["mad.lo." + type] = by_lane([](Unsigned a, Unsigned b, Unsigned c) { return static_cast<Unsigned>(a * b + c); });
  table["min." + type] = by_lane([](T a, T b) { return std::min(a, b); });
  table["max." + type] = by_lane([](T a, T b) { return std::max(a, b); });
  table["div." + type] = by_lane([](T a, T b) -> T {
    if (b == 0) return static_cast<T>(-1);
    return std::is_signed_v<T> && b == static_cast<T>(-1) ? static_cast<T>(-static_cast<Unsigned>(a)) : a / b;
  });
  table["rem." + type] = by_lane([](T a, T b) -> T { return b == 0 || (std::is_signed_v<T> && b == static_cast<T>(-1)) ? 0 : a % b; });
  table["shr." + type] = by_lane([](T a, uint32_t count) -> T { return count < 8 * sizeof(T) ? a >> count : a < 0 ? -1 : 0; });
}

template <class T>
void add_bits(Operations& table, const std::string& bits) {
  table["and.b" + bits] = by_lane([](T a, T b) { return static_cast<T>(a & b); });
  table["or.b" + bits] = by_lane([](T a, T b) { return static_cast<T>(a | b); });
  table["xor.b" + bits] = by_lane([](T a, T b) { return static_cast<T>(a ^ b); });
  table["not.b" + bits] = by_lane([](T a) { return static_cast<T>(~a); });
  table["shl.b" + bits] = by_lane([](T a, uint32_t count) -> T { return count < 8 * sizeof(T) ? a << count : 0; });
  for (const char* type : {"b", "u", "s", "f"}) {
    table["mov." + (type + bits)] = by_lane([](T a) { return a; });
    table["selp." + (type + bits)] = by_lane([](T a, T b, uint32_t predicate) { return predicate & 1 ? a : b; });
  }
}

// T's numbers as `number` gives them: the type itself, or float for the halves.
template <class T, class Number>
void add_comparisons(Operations& table, const std::string& type, Number number) {
  table["setp.eq." + type] = by_lane([=](T a, T b) { return number(a) == number(b); });
  table["setp.lt." + type] = by_lane([=](T a, T b) { return number(a) < number(b); });
  table["setp.le." + type] = by_lane([=](T a, T b) { return number(a) <= number(b); });
  table["setp.gt." + type] = by_lane([=](T a, T b) { return number(a) > number(b); });
  table["setp.ge." + type] = by_lane([=](T a, T b) { return number(a) >= number(b); });
  if constexpr (std::is_integral_v<T>) {
    table["setp.ne." + type] = by_lane([=](T a, T b) { return a != b; });
  } else {  // the comparisons of numbers alone are false where one is NaN, those that end in u are true
    table["setp.ne." + type] = by_lane([=](T a, T b) { return number(a) < number(b) || number(a) > number(b); });
    table["setp.equ." + type] = by_lane([=](T a, T b) { return !(number(a) < number(b) || number(a) > number(b)); });
    table["setp.neu." + type] = by_lane([=](T a, T b) { return number(a) != number(b); });
    table["setp.ltu." + type] = by_lane([=](T a, T b) { return !(number(a) >= number(b)); });
    table["setp.leu." + type] = by_lane([=](T a, T b) { return !(number(a) > number(b)); });
    table["setp.gtu." + type] = by_lane([=](T a, T b) { return !(number(a) <= number(b)); });
    table["setp.geu." + type] = by_lane([=](T a, T b) { return !(number(a) < number(b)); });
    table["setp.num." + type] = by_lane([=](T a, T b) { return !std::isnan(number(a)) && !std::isnan(number(b)); });
    table["setp.nan." + type] = by_lane([=](T a, T b) { return std::isnan(number(a)) || std::isnan(number(b)); });
  }
}

template <class T>
void add_floats(Operations& table, const std::string& type) {
  for (const char* rounding : {"", "rn."}) {
    table["add." + (rounding + type)] = by_lane([](T a, T b) { return a + b; });
    table["sub." + (rounding + type)] = by_lane([](T a, T b) { return a - b; });
    table["mul." + (rounding + type)] = by_lane([](T a, T b) { return a * b; });
  }
  table["fma.rn." + type] = by_lane([](T a, T b, T c) { return std::fma(a, b, c); });
  table["neg." + type] = by_lane([](T a) { return -a; });
  table["abs." + type] = by_lane([](T a) { return std::fabs(a); });
  table["max." + type] = by_lane([](T a, T b) { return larger(a, b); });
  table["min." + type] = by_lane([](T a, T b) { return -larger(-a, -b); });
}

inline void add_arithmetic(Operations& table) {
  const auto itself = [](auto x) { return x; };
  const auto as_float = [](auto x) { return to_float(x); };

  add_integers<int16_t>(table, "s16");
  add_integers<int32_t>(table, "s32");
  add_integers<int64_t>(table, "s64");
  add_integers<uint16_t>(table, "u16");
  add_integers<uint32_t>(table, "u32");
  add_integers<uint64_t>(table, "u64");
  table["mul.hi.u32"] = by_lane([](uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); });
  table["mul.wide.u32"] = by_lane([](uint32_t a, uint32_t b) { return uint64_t{a} * b; });
  table["mul.wide.s32"] = by_lane([](int32_t a, int32_t b) { return int64_t{a} * b; });
  table["mad.wide.u32"] = by_lane([](uint32_t a, uint32_t b, uint64_t c) { return uint64_t{a} * b + c; });
  table["mad.wide.s32"] = by_lane([](int32_t a, int32_t b, uint64_t c) { return static_cast<uint64_t>(int64_t{a} * b) + c; });

  add_bits<uint16_t>(table, "16");
  add_bits<uint32_t>(table, "32");
  add_bits<uint64_t>(table, "64");
  table["bfe.s32"] = by_lane([](int32_t a, uint32_t begin, uint32_t count) { return bit_field(a, begin, count); });
  table["bfe.u32"] = by_lane([](uint32_t a, uint32_t begin, uint32_t count) { return bit_field(a, begin, count); });
  table["prmt.b32"] = by_lane([](uint32_t a, uint32_t b, uint32_t selector) { return permuted_bytes(a, b, selector); });
  table["and.pred"] = by_lane([](uint8_t a, uint8_t b) { return (a & b & 1) != 0; });
  table["or.pred"] = by_lane([](uint8_t a, uint8_t b) { return ((a | b) & 1) != 0; });
  table["not.pred"] = by_lane([](uint8_t a) { return (~a & 1) != 0; });
  table["mov.pred"] = by_lane([](uint8_t a) { return (a & 1) != 0; });

  add_comparisons<int16_t>(table, "s16", itself);
  add_comparisons<int32_t>(table, "s32", itself);
  add_comparisons<int64_t>(table, "s64", itself);
  for (const char* type : {"u", "b"}) {
    add_comparisons<uint16_t>(table, std::string(type) + "16", itself);
    add_comparisons<uint32_t>(table, std::string(type) + "32", itself);
    add_comparisons<uint64_t>(table, std::string(type) + "64", itself);
  }
  add_comparisons<float>(table, "f32", itself);
  add_comparisons<double>(table, "f64", itself);
  add_comparisons<Float16>(table, "f16", as_float);
  add_comparisons<Bfloat16>(table, "bf16", as_float);

  add_floats<float>(table, "f32");
  add_floats<double>(table, "f64");
  table["max.f16"] = by_lane([](Float16 a, Float16 b) { return rounded<Float16>(larger(to_float(a), to_float(b))); });
  table["max.bf16"] = by_lane([](Bfloat16 a, Bfloat16 b) { return rounded<Bfloat16>(larger(to_float(a), to_float(b))); });
  table["fma.rn.ftz.f32"] = by_lane([](float a, float b, float c) { return flushed(std::fma(flushed(a), flushed(b), flushed(c))); });
  table["div.full.f32"] = by_lane([](float a, float b) { return a / b; });
  table["div.approx.f32"] = by_lane([](float a, float b) { return approximate_quotient(a, b); });
  table["sqrt.approx.ftz.f32"] = by_lane([](float a) { return std::sqrt(flushed(a)); });
  table["ex2.approx.f32"] = by_lane([](float a) { return static_cast<float>(std::exp2(static_cast<double>(a))); });
  table["ex2.approx.ftz.f32"] =
      by_lane([](float a) { return flushed(static_cast<float>(std::exp2(static_cast<double>(flushed(a))))); });

  table["cvt.u16.u32"] = by_lane([](uint32_t a) { return static_cast<uint16_t>(a); });
  table["cvt.u32.u16"] = by_lane([](uint16_t a) { return static_cast<uint32_t>(a); });
  table["cvt.u32.u64"] = by_lane([](uint64_t a) { return static_cast<uint32_t>(a); });
  table["cvt.u64.u32"] = by_lane([](uint32_t a) { return static_cast<uint64_t>(a); });
  table["cvt.s64.s32"] = by_lane([](int32_t a) { return static_cast<int64_t>(a); });
  table["cvt.rn.f32.s32"] = by_lane([](int32_t a) { return static_cast<float>(a); });
  table["cvt.rn.f32.u32"] = by_lane([](uint32_t a) { return static_cast<float>(a); });
  table["cvt.rn.f32.u64"] = by_lane([](uint64_t a) { return static_cast<float>(a); });
  table["cvt.rn.f32.f64"] = by_lane([](double a) { return static_cast<float>(a); });
  table["cvt.f64.f32"] = by_lane([](float a) { return static_cast<double>(a); });
  table["cvt.f64.f16"] = by_lane([](Float16 a) { return static_cast<double>(to_float(a)); });
  table["cvt.f32.f16"] = by_lane([](Float16 a) { return to_float(a); });
  table["cvt.f32.bf16"] = by_lane([](Bfloat16 a) { return to_float(a); });
  table["cvt.rn.f16.f32"] = by_lane([](float a) { return rounded<Float16>(a); });
  table["cvt.rn.bf16.f32"] = by_lane([](float a) { return rounded<Bfloat16>(a); });
  table["cvt.rn.f16x2.f32"] = by_lane([](float high, float low) {
    return static_cast<uint32_t>(rounded<Float16>(high).bits) << 16 | rounded<Float16>(low).bits;
  });
  table["cvt.rn.bf16x2.f32"] = by_lane([](float high, float low) {
    return static_cast<uint32_t>(rounded<Bfloat16>(high).bits) << 16 | rounded<Bfloat16>(low).bits;
  });
}

}  // namespace ak::ptx
