// A CPU that runs the PTX of a kernel, for the tests: the instructions as ptx/program.py has parsed them, on the memory of CPU tensors.
// All threads of a program run in step; where they diverge, those that are furthest behind run first. See machine.h for what the machine
// watches, and ptx/driver.py for the schedules that a launch is run by. The functions at the end are what Python calls.
#include <climits>

#include "arithmetic.h"
#include "machine.h"
#include "memory.h"
#include "warp.h"

namespace ak::ptx {
namespace {

constexpr int kSpecial = 7;                          // the first slots: %tid.x, %ctaid.x to .z, %nctaid.x to .z
constexpr uint64_t kMostInstructions = 200'000'000;  // of one program, before it is taken for endless

void branch(Machine& machine, const Instruction& instruction) {
  bool any = false, all = true;
  machine.for_each_thread(instruction, [&](int thread, bool taken) {
    machine.position[thread] = taken ? instruction.target : machine.here + 1;
    any |= taken;
    all &= taken;
  });
  if (any) machine.next = all ? instruction.target : Machine::kElsewhere;
}

void wait_at_barrier(Machine& machine, const Instruction& instruction) {
  machine.for_each_thread(instruction, [&](int thread, bool) {
    machine.state[thread] = State::at_barrier;
    machine.position[thread] = machine.here + 1;
  });
  machine.next = Machine::kElsewhere;
}

void leave(Machine& machine, const Instruction& instruction) {
  machine.for_each_thread(instruction, [&](int thread, bool leaves) {
    if (leaves) machine.state[thread] = State::done;
    machine.position[thread] = machine.here + 1;
  });
  machine.next = Machine::kElsewhere;
}

// The source is a parameter's number.
template <class T>
void load_parameter(Machine& machine, const Instruction& instruction) {
  const uint64_t* number = machine.lanes(instruction.sources[0]);
  uint64_t* to = machine.lanes(instruction.destinations[0]);
  machine.for_each_lane(instruction, [&](int lane) {
    if (number[lane] < machine.parameters.size())
      to[lane] = static_cast<uint64_t>(value_of<T>(machine.parameters[number[lane]]));
    else
      machine.report("a parameter that there is not", instruction, lane % machine.threads);
  });
}

// The parts of a value as a register each, the lowest first.
void unpack(Machine& machine, const Instruction& instruction, int bits) {
  const int width = bits / instruction.values();
  std::vector<uint64_t> from(machine.lanes(instruction.sources[0]), machine.lanes(instruction.sources[0]) + 2 * machine.threads);
  for (int i = 0; i < instruction.values(); ++i) {
    if (instruction.destinations[i] < 0) continue;
    uint64_t* to = machine.lanes(instruction.destinations[i]);
    machine.for_each_lane(instruction, [&](int lane) { to[lane] = from[lane] >> i * width & ((uint64_t{1} << width) - 1); });
  }
}

void pack(Machine& machine, const Instruction& instruction, int bits) {
  const int parts = static_cast<int>(instruction.sources.size()), width = bits / parts;
  machine.for_each_lane(instruction, [&](int lane) {
    uint64_t value = 0;
    for (int i = 0; i < parts; ++i)
      value |= (machine.lanes(instruction.sources[i])[lane] & ((uint64_t{1} << width) - 1)) << i * width;
    machine.lanes(instruction.destinations[0])[lane] = value;
  });
}

const Operations& operations() {
  static const Operations table = [] {
    Operations made;
    add_arithmetic(made);
    add_memory(made);
    add_warp(made);
    made["ld.param.b32"] = {load_parameter<uint32_t>, 1};
    made["ld.param.b64"] = {load_parameter<uint64_t>, 1};
    made["ld.param.s32"] = {load_parameter<int32_t>, 1};
    made["bra"] = {branch, 0};
    made["ret"] = {leave, 0};
    made["bar.sync"] = {wait_at_barrier, 1};
    made["bar.warp.sync"] = {[](Machine&, const Instruction&) {}, 1};  // the threads of a warp are in step
    for (const int bits : {32, 64}) {
      made["pack.b" + std::to_string(bits)] = {[=](Machine& m, const Instruction& i) { pack(m, i, bits); }};
      made["unpack.b" + std::to_string(bits)] = {[=](Machine& m, const Instruction& i) { unpack(m, i, bits); }, 1};
    }
    return made;
  }();
  return table;
}

class Kernel {
 public:
  Kernel(std::vector<Instruction> code, int threads, int registers, const std::vector<uint64_t>& constants)
      : code_(std::move(code)), registers_(registers), machine_(threads, kSpecial + registers + static_cast<int>(constants.size())) {
    for (size_t i = 0; i < constants.size(); ++i)
      machine_.fill(kSpecial + registers + static_cast<int>(i), constants[i], constants[i]);
    for (int lane = 0; lane < 2 * threads; ++lane) machine_.lanes(0)[lane] = lane % threads;
    for (const Instruction& instruction : code_) {
      const Operation& operation = *instruction.operation;
      const int each = operation.each ? instruction.values() : 1;
      if (operation.shared_bytes > 0) shared_cell_ = std::min(shared_cell_, operation.shared_bytes * each);
      if (operation.global_bytes > 0) global_cell_ = std::min(global_cell_, operation.global_bytes * each);
    }
  }

  void launch(
      const uint32_t (&grid)[3], const std::vector<uint64_t>& parameters, uint32_t shared_begin, uint32_t shared_bytes,
      Schedule schedule) {
    machine_.parameters = parameters;
    machine_.schedule = schedule;
    machine_.shared_begin = shared_begin;
    machine_.shared_bytes = shared_bytes;
    machine_.now = 0;
    machine_.findings.clear();
    for (int i = 0; i < 3; ++i) machine_.fill(4 + i, grid[i], grid[i]);
    const int64_t programs = int64_t{grid[0]} * grid[1] * grid[2];
    for (int64_t i = 0; i < programs; ++i) {
      uint64_t program = machine_.findings.program = together() ? i : programs - 1 - i;
      for (int axis = 0; axis < 3; ++axis) {
        machine_.fill(1 + axis, program % grid[axis], program % grid[axis]);
        program /= grid[axis];
      }
      start_program();
      run_program();
    }
  }

  void set_tensors(const uint64_t* rows, int count, bool watched) {
    machine_.tensors.clear();
    machine_.tensors.reserve(count);
    for (int i = 0; i < count; ++i) {
      const uint64_t* row = rows + 4 * i;
      machine_.tensors.push_back({row[0], row[1], row[2], row[3], Races(Space::global, machine_.now, machine_.findings)});
      if (watched) machine_.tensors.back().races.start(row[3] - row[2], global_cell_);
    }
  }

  std::string findings() const { return machine_.findings.text(); }

 private:
  bool together() const { return machine_.schedule == Schedule::together; }

  void start_program() {
    ++machine_.now;
    for (int i = 0; i < registers_; ++i) machine_.fill(kSpecial + i, kNothing[0], kNothing[1]);
    for (int copy = 0; copy < 2; ++copy) machine_.shared[copy].assign(machine_.shared_bytes, static_cast<uint8_t>(kNothing[copy] >> 56));
    if (together())
      machine_.shared_races.start(machine_.shared_bytes, shared_cell_);
    else
      machine_.shared_races.stop();
    std::fill(machine_.state.begin(), machine_.state.end(), State::running);
    std::fill(machine_.position.begin(), machine_.position.end(), 0);
    for (int thread = 0; thread < machine_.threads; ++thread) {
      machine_.open[thread].clear();
      machine_.groups[thread].clear();
    }
  }

  void run_program() {
    machine_.first = 0;
    machine_.last = together() ? machine_.threads : 0;
    uint64_t count = 0;
    while (choose_next()) {
      do {
        const Instruction& instruction = code_[machine_.here];
        machine_.next = machine_.here + 1;
        instruction.operation->execute(machine_, instruction);
        if (++count > kMostInstructions) {
          machine_.report("a program that does not end", instruction, machine_.first);
          return;
        }
      } while (go_on());
    }
  }

  // To the next instruction without a choice, where all the threads that run are at one.
  bool go_on() {
    if (machine_.next == Machine::kElsewhere) return false;
    if (!machine_.diverged) {
      machine_.here = machine_.next;
      return true;
    }
    machine_.set_position_of_present(machine_.next);
    return false;
  }

  // The threads that are furthest behind; false where all are done.
  bool choose_next() {
    if (!anybody_runs() && !choose_warp()) {
      if (!pass_barrier()) return false;
      choose_warp();
    }
    machine_.here = INT_MAX;
    for (int thread = machine_.first; thread < machine_.last; ++thread)
      if (machine_.state[thread] == State::running) machine_.here = std::min(machine_.here, machine_.position[thread]);
    machine_.set_present(machine_.here);
    return true;
  }

  bool anybody_runs() const {
    const auto begin = machine_.state.begin();
    return std::count(begin + machine_.first, begin + machine_.last, State::running) > 0;
  }

  bool choose_warp() {
    if (together()) return false;
    for (int thread = 0; thread < machine_.threads; thread += 32) {
      machine_.first = machine_.schedule == Schedule::falling ? machine_.threads - 32 - thread : thread;
      machine_.last = machine_.first + 32;
      if (anybody_runs()) return true;
    }
    return false;
  }

  // Once nobody runs: those that wait run again.
  bool pass_barrier() {
    bool waited = false;
    for (State& state : machine_.state) {
      if (state != State::at_barrier) continue;
      state = State::running;
      waited = true;
    }
    ++machine_.now;
    return waited;
  }

  const std::vector<Instruction> code_;
  const int registers_;
  Machine machine_;
  int shared_cell_ = 16, global_cell_ = 16;
};

}  // namespace

extern "C" {

// How many sources the operation takes: -1 any number, -2: there is no such operation.
int ptx_sources(const char* name) {
  const auto found = operations().find(name);
  return found == operations().end() ? -2 : found->second.sources;
}

// `code` has for each instruction: predicate, negated, line, target, forgets, the numbers of destinations, sources and offsets, and those.
void* ptx_load(
    const char* const* names, const int64_t* code, int instructions, int threads, int registers, const uint64_t* constants,
    int constant_count) {
  std::vector<Instruction> made(instructions);
  const auto take = [&](auto& to, int64_t count) {
    to.assign(code, code + count);
    code += count;
  };
  for (int i = 0; i < instructions; ++i) {
    made[i].operation = &operations().at(names[i]);
    made[i].predicate = static_cast<int>(code[0]);
    made[i].negated = code[1] != 0;
    made[i].line = static_cast<int>(code[2]);
    made[i].target = static_cast<int>(code[3]);
    made[i].forgets = code[4] != 0;
    const int64_t* counts = code + 5;
    code += 8;
    take(made[i].destinations, counts[0]);
    take(made[i].sources, counts[1]);
    take(made[i].offsets, counts[2]);
  }
  return new Kernel(std::move(made), threads, registers, {constants, constants + constant_count});
}

// `tensors` has for each the first and the last address (exclusive) of its elements, and those of its storage.
void ptx_launch(
    void* kernel, const uint32_t* grid, const uint64_t* parameters, int parameter_count, const uint64_t* tensors, int tensor_count,
    uint32_t shared_begin, uint32_t shared_bytes, int schedule) {
  Kernel& launched = *static_cast<Kernel*>(kernel);
  launched.set_tensors(tensors, tensor_count, schedule == 0);
  const std::vector<uint64_t> given(parameters, parameters + parameter_count);
  launched.launch({grid[0], grid[1], grid[2]}, given, shared_begin, shared_bytes, static_cast<Schedule>(schedule));
}

// The rows of the last launch's findings, until the next call.
const char* ptx_findings(void* kernel) {
  static std::string text;
  text = static_cast<Kernel*>(kernel)->findings();
  return text.c_str();
}
}

}  // namespace ak::ptx
