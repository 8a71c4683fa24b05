// The state of a machine that runs PTX: the threads of a program in step, as far as they are at the same instruction. Registers and shared
// memory exist in two copies that start with different bits, and nothing but what is never written can tell one from the other: where a
// branch, an address or a stored value differs between the copies, it depends on something uninitialised. Global memory is the tensors'
// own. A slot holds a register, or a value that no instruction changes, as [2 copies, threads] lanes of 64 bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "findings.h"
#include "races.h"

namespace ak::ptx {

class Machine;
struct Instruction;
using Execute = std::function<void(Machine&, const Instruction&)>;

struct Operation {
  Execute execute;
  int sources = -1;  // how many, and -1: any number
  // Bytes that a thread reads or writes at least, for each of the values it names or (`each` is false) together.
  int shared_bytes = 0, global_bytes = 0;
  bool each = false;
};
using Operations = std::unordered_map<std::string, Operation>;

struct Instruction {
  const Operation* operation;
  int predicate;  // a slot, or -1
  bool negated;
  int line;
  int target;    // of a branch: an index of instructions
  bool forgets;  // a load whose destinations hold nothing in the threads that its predicate leaves out
  std::vector<int> destinations, sources;  // slots; destination -1: the value is not wanted
  std::vector<int64_t> offsets;            // of the addresses among the sources, in their order

  // Values that a load or store moves per thread.
  int values() const { return static_cast<int>(std::max(destinations.size(), sources.size() - 1)); }
};

struct Tensor {
  uint64_t first, last;  // the addresses that its elements take
  uint64_t begin, end;   // those of its storage
  Races races;
};

// A cp.async that has not been waited for.
struct AsyncCopy {
  const Instruction* instruction;
  int64_t to;     // bytes from the start of shared memory
  uint64_t from;  // an address
  int bytes, given;  // those written, and those of them read; the others are zero
};

// together: all warps in step, programs from the first to the last, cp.async as late as can be. This is the run that is checked for races.
// The others take the programs from the last to the first, run a warp to the next barrier before the next one does, and copy at once.
enum class Schedule { together, rising, falling };
enum class State : uint8_t { running, at_barrier, done };

constexpr uint64_t kNothing[2] = {~uint64_t{0}, 0x4b3c2d1e4b3c2d1e};  // what an uninitialised slot holds in each copy

template <class T>
T value_of(uint64_t slot) {
  T value;
  std::memcpy(&value, &slot, sizeof(T));
  return value;
}
template <class T>
uint64_t slot_of(T value) {
  uint64_t slot = 0;
  std::memcpy(&slot, &value, sizeof(T));
  return slot;
}

class Machine {
 public:
  Machine(int threads, int slots)
      : threads(threads), state(threads), position(threads), open(threads), groups(threads), slots_(size_t{2} * threads * slots),
        present_(2 * threads), on_(2 * threads) {}

  uint64_t* lanes(int slot) { return &slots_[size_t{2} * threads * slot]; }
  void fill(int slot, uint64_t first, uint64_t second) {
    std::fill_n(lanes(slot), threads, first);
    std::fill_n(lanes(slot) + threads, threads, second);
  }
  void forget(int slot, int thread) {
    for (int copy = 0; copy < 2; ++copy) lanes(slot)[copy * threads + thread] = kNothing[copy];
  }
  void report(const char* kind, const Instruction& instruction, int thread, int64_t address = 0) {
    findings.add(kind, {instruction.line, thread}, address);
  }

  // visit(lane) in both copies, where the instruction is executed.
  template <class Visit>
  void for_each_lane(const Instruction& instruction, const Visit& visit) {
    const uint8_t* on = active(instruction);
    for (int copy = 0; copy < 2; ++copy) {
      const int begin = copy * threads + first, end = copy * threads + last;
      if (on == nullptr) {
        for (int lane = begin; lane < end; ++lane) visit(lane);
      } else {
        for (int lane = begin; lane < end; ++lane)
          if (on[lane]) visit(lane);
      }
    }
  }

  // visit(thread, whether its predicate is on), for all that are at the instruction.
  template <class Visit>
  void for_each_thread(const Instruction& instruction, const Visit& visit) {
    const uint8_t* on = active(instruction);
    for (int thread = first; thread < last; ++thread) {
      if (!present_[thread]) continue;
      if (on != nullptr && on[thread] != on[thread + threads])
        report("a branch or the mask of an access depends on something uninitialised", instruction, thread);
      visit(thread, on == nullptr || on[thread]);
    }
  }

  // visit(lane of the warp's first thread) in both copies. All of the warp's threads must be here, and named in `mask`, a slot or -1.
  template <class Visit>
  void for_each_warp(const Instruction& instruction, int mask, const Visit& visit) {
    const uint8_t* on = active(instruction);
    for (int copy = 0; copy < 2; ++copy)
      for (int thread = first; thread < last; thread += 32) {
        const int warp = copy * threads + thread;
        const auto count = on == nullptr ? 32 : std::count(on + warp, on + warp + 32, 1);
        if (count == 0) continue;
        const auto unnamed = [](uint64_t lanes) { return static_cast<uint32_t>(lanes) != 0xffffffff; };
        if (count < 32 || (mask >= 0 && std::any_of(lanes(mask) + warp, lanes(mask) + warp + 32, unnamed)))
          report("an instruction of a whole warp in some of its threads", instruction, thread);
        visit(warp);
      }
  }

  // The address that source `which` gives with its offset, in `address`; false where it depends on something uninitialised.
  bool address(const Instruction& instruction, int which, int thread, uint64_t& address) {
    const uint64_t* base = lanes(instruction.sources[which]) + thread;
    address = base[0] + instruction.offsets[which];
    if (base[0] == base[threads]) return true;
    report("an address depends on something uninitialised", instruction, thread);
    return false;
  }

  // Which of the threads from `first` to `last` the next instruction is for.
  void set_present(int here) {
    bool everybody = true;
    for (int thread = first; thread < last; ++thread) {
      const bool present = state[thread] == State::running && position[thread] == here;
      present_[thread] = present_[thread + threads] = present;
      everybody &= present;
    }
    diverged = !everybody;
  }

  void set_position_of_present(int to) {
    for (int thread = first; thread < last; ++thread)
      if (present_[thread]) position[thread] = to;
  }

  const int threads;
  int first = 0, last = 0;  // the threads that run now: all, or a warp
  bool diverged = false;    // whether some of them are at other instructions
  std::vector<State> state;
  std::vector<int> position;  // of a thread that is not running, or is elsewhere
  int here = 0, next = 0;     // the instruction that runs, and the one after it; kElsewhere: `position` tells
  static constexpr int kElsewhere = -1;

  Schedule schedule = Schedule::together;
  uint32_t now = 0;
  Findings findings;
  std::vector<uint64_t> parameters;
  uint32_t shared_begin = 0, shared_bytes = 0;
  std::vector<uint8_t> shared[2];
  Races shared_races{Space::shared, now, findings};
  std::vector<Tensor> tensors;
  std::vector<std::vector<AsyncCopy>> open;                 // of each thread, not yet in a group
  std::vector<std::vector<std::vector<AsyncCopy>>> groups;  // of each thread, the oldest first

 private:
  // By lane; null: everywhere.
  const uint8_t* active(const Instruction& instruction) {
    if (instruction.predicate < 0) return diverged ? present_.data() : nullptr;
    const uint64_t* predicate = lanes(instruction.predicate);
    for (int copy = 0; copy < 2; ++copy)
      for (int lane = copy * threads + first; lane < copy * threads + last; ++lane)
        on_[lane] = present_[lane] & ((predicate[lane] & 1) != instruction.negated);
    return on_.data();
  }

  std::vector<uint64_t> slots_;
  std::vector<uint8_t> present_, on_;
};

}  // namespace ak::ptx
