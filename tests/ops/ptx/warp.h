// The instructions of a warp's 32 threads together: shuffles, reductions, and the products of small matrices that tensor cores compute.
#pragma once

#include <array>
#include <string>

#include "arithmetic.h"
#include "machine.h"
#include "memory.h"

namespace ak::ptx {

// choose(lane, operand, last) is the lane whose value this one takes; one that is not allowed by `last` leaves it its own.
// Sources: value, operand, bounds of the lanes (bits 0 to 4: the last, or for `up` the first), mask.
template <class Choose, class Allowed>
Operation shuffle(Choose choose, Allowed allowed) {
  const auto execute = [=](Machine& machine, const Instruction& instruction) {
    const uint64_t *value = machine.lanes(instruction.sources[0]), *operand = machine.lanes(instruction.sources[1]);
    const uint64_t* bounds = machine.lanes(instruction.sources[2]);
    uint64_t* to = machine.lanes(instruction.destinations[0]);
    machine.for_each_warp(instruction, instruction.sources[3], [&](int warp) {
      std::array<uint64_t, 32> values;
      std::copy_n(value + warp, 32, values.begin());
      for (int lane = 0; lane < 32; ++lane) {
        const int clamp = static_cast<int>(bounds[warp + lane] & 31), segment = static_cast<int>(bounds[warp + lane] >> 8 & 31);
        const int bound = (lane & segment) | (clamp & ~segment);
        const int other = choose(lane, static_cast<int>(operand[warp + lane] & 31), segment);
        to[warp + lane] = static_cast<uint32_t>(values[allowed(other, bound) ? other : lane]);
      }
    });
  };
  return {execute, 4};
}

template <class Combine>
Operation reduction(Combine combine) {
  const auto execute = [=](Machine& machine, const Instruction& instruction) {
    const uint64_t* value = machine.lanes(instruction.sources[0]);
    uint64_t* to = machine.lanes(instruction.destinations[0]);
    machine.for_each_warp(instruction, instruction.sources[1], [&](int warp) {
      int32_t result = value_of<int32_t>(value[warp]);
      for (int lane = 1; lane < 32; ++lane) result = combine(result, value_of<int32_t>(value[warp + lane]));
      std::fill_n(to + warp, 32, slot_of(result));
    });
  };
  return {execute, 2};
}

// Matrices of 8x8 halves, one for each destination. Thread 8 i + j gives the address of row j of matrix i. Lane 4 j + k gets elements 2 k
// and 2 k + 1 of row j, or transposed, of column j.
inline void load_matrices(Machine& machine, const Instruction& instruction, bool transposed) {
  machine.for_each_warp(instruction, -1, [&](int warp) {
    if (warp >= machine.threads) return;  // both copies at once
    for (int matrix = 0; matrix < instruction.values(); ++matrix) {
      int64_t rows[8];
      bool valid = true;
      for (int row = 0; row < 8; ++row) {
        const int thread = warp + 8 * matrix + row;
        uint64_t address;
        rows[row] = machine.address(instruction, 0, thread, address) ? in_shared(machine, instruction, thread, address, 16) : -1;
        valid &= rows[row] >= 0;
      }
      if (!valid) continue;
      for (int lane = 0; lane < 32; ++lane)
        for (int half = 0; half < 2; ++half) {
          const int line = lane / 4, element = lane % 4 * 2 + half;
          const int64_t offset = transposed ? rows[element] + 2 * line : rows[line] + 2 * element;
          machine.shared_races.read({instruction.line, warp + lane}, offset, 2);
          for (int copy = 0; copy < 2; ++copy) {
            uint64_t& to = machine.lanes(instruction.destinations[matrix])[copy * machine.threads + warp + lane];
            if (half == 0) to = 0;
            std::memcpy(reinterpret_cast<uint8_t*>(&to) + 2 * half, &machine.shared[copy][offset], 2);
          }
        }
    }
  });
}

// [16, depth] times [depth, 8] plus [16, 8] in the fragments of the PTX manual: lane 4 i + j holds of the left matrix words j and j + 4
// of rows i and i + 8, of the right one words j and j + 4 of column i, of the sums elements 2 j and 2 j + 1 of rows i and i + 8. A word
// has one tf32 number, whose last 13 bits are not read, or two halves. Products and sums are in double, rounded at the end.
template <class Number>
void multiply_matrices(Machine& machine, const Instruction& instruction) {
  constexpr int per_word = 4 / sizeof(Number), depth = 8 * per_word;
  const auto word_of = [&](int source, int lane) { return static_cast<uint32_t>(machine.lanes(instruction.sources[source])[lane]); };
  const auto unpack = [](uint32_t word, float* to) {
    if constexpr (std::is_same_v<Number, float>) {
      to[0] = value_of<float>(word & 0xffffe000u);
    } else {
      to[0] = to_float(value_of<Number>(word));
      to[1] = to_float(value_of<Number>(word >> 16));
    }
  };
  machine.for_each_warp(instruction, -1, [&](int warp) {
    float left[16][depth], right[8][depth];
    double sums[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int i = lane / 4, j = lane % 4;
      for (int word = 0; word < 4; ++word) unpack(word_of(word, warp + lane), left[i + word % 2 * 8] + (j + word / 2 * 4) * per_word);
      for (int word = 0; word < 2; ++word) unpack(word_of(4 + word, warp + lane), right[i] + (j + word * 4) * per_word);
      for (int word = 0; word < 4; ++word) sums[i + word / 2 * 8][2 * j + word % 2] = value_of<float>(word_of(6 + word, warp + lane));
    }
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < 8; ++column) sums[row][column] += static_cast<double>(left[row][k]) * right[column][k];
    for (int lane = 0; lane < 32; ++lane)
      for (int word = 0; word < 4; ++word)
        machine.lanes(instruction.destinations[word])[warp + lane] =
            slot_of(static_cast<float>(sums[lane / 4 + word / 2 * 8][lane % 4 * 2 + word % 2]));
  });
}

inline void add_warp(Operations& table) {
  const auto at_most = [](int other, int bound) { return other <= bound; };
  const auto at_least = [](int other, int bound) { return other >= bound; };
  table["shfl.sync.bfly.b32"] = shuffle([](int lane, int operand, int) { return lane ^ operand; }, at_most);
  table["shfl.sync.up.b32"] = shuffle([](int lane, int operand, int) { return lane - operand; }, at_least);
  table["shfl.sync.idx.b32"] =
      shuffle([](int lane, int operand, int segment) { return (lane & segment) | (operand & ~segment); }, at_most);
  table["redux.sync.add.s32"] = reduction([](int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + b); });
  table["redux.sync.max.s32"] = reduction([](int32_t a, int32_t b) { return std::max(a, b); });
  for (const char* count : {"x1", "x2", "x4"})
    for (const bool transposed : {false, true}) {
      const std::string name = std::string("ldmatrix.sync.aligned.m8n8.") + count + (transposed ? ".trans" : "") + ".shared.b16";
      const auto execute = [=](Machine& machine, const Instruction& instruction) { load_matrices(machine, instruction, transposed); };
      table[name] = {execute, 1, 2};
    }
  table["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"] = {multiply_matrices<float>, 10};
  table["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = {multiply_matrices<Float16>, 10};
  table["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = {multiply_matrices<Bfloat16>, 10};
}

}  // namespace ak::ptx
