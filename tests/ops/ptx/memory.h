// Loads, stores and asynchronous copies: within the tensors and shared memory, aligned, and watched for races.
#pragma once

#include <string>
#include <utility>

#include "machine.h"

namespace ak::ptx {

// Bytes from the start of shared memory to `address`; -1 where an access of so many bytes there is reported as wrong.
inline int64_t in_shared(Machine& machine, const Instruction& instruction, int thread, uint64_t address, int bytes) {
  const int64_t from_begin = static_cast<int64_t>(static_cast<uint32_t>(address)) - machine.shared_begin;
  const bool within = from_begin >= 0 && from_begin + bytes <= machine.shared_bytes;
  if (!within) machine.report("an access out of shared memory's bounds", instruction, thread, from_begin);
  const bool aligned = from_begin % bytes == 0;
  if (within && !aligned) machine.report("an access to shared memory that is not aligned", instruction, thread, from_begin);
  return within && aligned ? from_begin : -1;
}

// The tensor that holds the bytes; null where the access is reported as wrong. `alignment`: a copy can read less than it is aligned to.
inline Tensor* in_tensor(Machine& machine, const Instruction& instruction, int thread, uint64_t address, int bytes, int alignment) {
  for (Tensor& tensor : machine.tensors) {
    if (address < tensor.begin || address + bytes > tensor.end) continue;
    const int64_t from_first = static_cast<int64_t>(address - tensor.first);
    if (address < tensor.first || address + bytes > tensor.last)
      machine.report("an access out of a tensor's bounds, within its storage", instruction, thread, from_first);
    if (address % alignment == 0) return &tensor;
    machine.report("an access to a tensor that is not aligned", instruction, thread, from_first);
    return nullptr;
  }
  machine.report("an access out of all tensors' bounds", instruction, thread, static_cast<int64_t>(address));
  return nullptr;
}

// visit(thread, bytes from the start of shared memory) of each thread's access of so many bytes, those left out that are reported as wrong.
template <class Visit>
void for_each_shared_access(Machine& machine, const Instruction& instruction, int bytes, const Visit& visit) {
  machine.for_each_thread(instruction, [&](int thread, bool on) {
    uint64_t address;
    if (!on || !machine.address(instruction, 0, thread, address)) return;
    const int64_t offset = in_shared(machine, instruction, thread, address, bytes);
    if (offset >= 0) visit(thread, offset);
  });
}

inline void load_shared(Machine& machine, const Instruction& instruction, int width) {
  const int values = instruction.values(), bytes = values * width;
  for_each_shared_access(machine, instruction, bytes, [&](int thread, int64_t offset) {
    machine.shared_races.read({instruction.line, thread}, offset, bytes);
    for (int copy = 0; copy < 2; ++copy)
      for (int i = 0; i < values; ++i) {
        if (instruction.destinations[i] < 0) continue;
        uint64_t& to = machine.lanes(instruction.destinations[i])[copy * machine.threads + thread];
        to = 0;
        std::memcpy(&to, &machine.shared[copy][offset + i * width], width);
      }
  });
}

inline void store_shared(Machine& machine, const Instruction& instruction, int width) {
  const int values = instruction.values(), bytes = values * width;
  for_each_shared_access(machine, instruction, bytes, [&](int thread, int64_t offset) {
    bool same = true;
    for (int copy = 0; copy < 2; ++copy)
      for (int i = 0; i < values; ++i) {
        const uint64_t& value = machine.lanes(instruction.sources[1 + i])[copy * machine.threads + thread];
        uint8_t* to = &machine.shared[copy][offset + i * width];
        same &= std::memcmp(to, &value, width) == 0;
        std::memcpy(to, &value, width);
      }
    machine.shared_races.write({instruction.line, thread}, offset, bytes, same);
  });
}

inline void load_global(Machine& machine, const Instruction& instruction, int width) {
  const int values = instruction.values(), bytes = values * width;
  machine.for_each_thread(instruction, [&](int thread, bool on) {
    uint64_t address;
    if (!on && !instruction.forgets) return;
    Tensor* tensor = nullptr;
    if (on && machine.address(instruction, 0, thread, address))
      tensor = in_tensor(machine, instruction, thread, address, bytes, bytes);
    if (tensor) tensor->races.read({instruction.line, thread}, static_cast<int64_t>(address - tensor->begin), bytes);
    for (int i = 0; i < values; ++i) {
      if (instruction.destinations[i] < 0) continue;
      if (!tensor) {
        machine.forget(instruction.destinations[i], thread);
        continue;
      }
      uint64_t value = 0;
      std::memcpy(&value, reinterpret_cast<const uint8_t*>(address) + i * width, width);
      for (int copy = 0; copy < 2; ++copy) machine.lanes(instruction.destinations[i])[copy * machine.threads + thread] = value;
    }
  });
}

inline void store_global(Machine& machine, const Instruction& instruction, int width) {
  const int values = instruction.values(), bytes = values * width;
  machine.for_each_thread(instruction, [&](int thread, bool on) {
    uint64_t address;
    if (!on || !machine.address(instruction, 0, thread, address)) return;
    Tensor* tensor = in_tensor(machine, instruction, thread, address, bytes, bytes);
    if (!tensor) return;
    const int64_t offset = static_cast<int64_t>(address - tensor->begin);
    bool same = true;
    for (int i = 0; i < values; ++i) {
      const uint64_t* value = machine.lanes(instruction.sources[1 + i]) + thread;
      if (std::memcmp(value, value + machine.threads, width) != 0)
        machine.report("a stored value depends on something uninitialised", instruction, thread, offset);
      uint8_t* to = reinterpret_cast<uint8_t*>(address) + i * width;
      same &= std::memcmp(to, value, width) == 0;
      std::memcpy(to, value, width);
    }
    tensor->races.write({instruction.line, thread}, offset, bytes, same);
  });
}

// Writes what a copy has read, zeros behind it.
inline void write_copy(Machine& machine, const AsyncCopy& copy) {
  for (std::vector<uint8_t>& shared : machine.shared) {
    std::memcpy(&shared[copy.to], reinterpret_cast<const uint8_t*>(copy.from), copy.given);
    std::memset(&shared[copy.to + copy.given], 0, copy.bytes - copy.given);
  }
}

// Sources: an address of shared memory, one of a tensor, how many bytes to write, and how many of them to read where that is less.
inline void start_copy(Machine& machine, const Instruction& instruction) {
  machine.for_each_thread(instruction, [&](int thread, bool on) {
    uint64_t to, from;
    if (!on || !machine.address(instruction, 0, thread, to)) return;
    const int bytes = static_cast<int>(machine.lanes(instruction.sources[2])[thread]);
    AsyncCopy copy{&instruction, in_shared(machine, instruction, thread, to, bytes), 0, bytes, bytes};
    if (copy.to < 0) return;
    if (instruction.sources.size() > 3) {
      const uint64_t* given = machine.lanes(instruction.sources[3]) + thread;
      if (given[0] != given[machine.threads]) machine.report("the size of a copy depends on something uninitialised", instruction, thread);
      copy.given = static_cast<int>(std::min<uint32_t>(static_cast<uint32_t>(given[0]), bytes));
    }
    if (copy.given > 0) {
      Tensor* tensor = nullptr;
      if (machine.address(instruction, 1, thread, from)) tensor = in_tensor(machine, instruction, thread, from, copy.given, bytes);
      if (tensor) tensor->races.read({instruction.line, thread}, static_cast<int64_t>(from - tensor->begin), copy.given);
      copy.from = from;
      if (!tensor) copy.given = 0;
    }
    machine.shared_races.write({instruction.line, thread}, copy.to, bytes, false);
    machine.shared_races.set_in_flight(copy.to, bytes, true);
    if (machine.schedule != Schedule::together) write_copy(machine, copy);
    machine.open[thread].push_back(copy);
  });
}

inline void commit_copies(Machine& machine, const Instruction& instruction) {
  machine.for_each_thread(instruction, [&](int thread, bool) {
    machine.groups[thread].push_back(std::move(machine.open[thread]));
    machine.open[thread].clear();
  });
}

// Until as many groups are left as the source says.
inline void wait_for_copies(Machine& machine, const Instruction& instruction) {
  machine.for_each_thread(instruction, [&](int thread, bool) {
    std::vector<std::vector<AsyncCopy>>& groups = machine.groups[thread];
    const size_t allowed = machine.lanes(instruction.sources[0])[thread];
    while (groups.size() > allowed) {
      for (const AsyncCopy& copy : groups.front()) {
        if (machine.schedule == Schedule::together) write_copy(machine, copy);
        machine.shared_races.set_in_flight(copy.to, copy.bytes, false);
        machine.shared_races.write({copy.instruction->line, thread}, copy.to, copy.bytes, false);
      }
      groups.erase(groups.begin());
    }
  });
}

inline void add_memory(Operations& table) {
  using Access = void (*)(Machine&, const Instruction&, int);
  for (const int width : {1, 2, 4, 8}) {
    const std::string type = ".b" + std::to_string(8 * width);
    const auto of_width = [width](Access access) {
      return [=](Machine& machine, const Instruction& instruction) { access(machine, instruction, width); };
    };
    table["ld.shared" + type] = {of_width(load_shared), -1, width, 0, true};
    table["st.shared" + type] = {of_width(store_shared), -1, width, 0, true};
    table["ld.global" + type] = {of_width(load_global), -1, 0, width, true};
    table["st.global" + type] = {of_width(store_global), -1, 0, width, true};
  }
  for (const char* cached : {"ca", "cg"}) table["cp.async." + (cached + std::string(".shared.global"))] = {start_copy, -1, 4, 2};
  table["cp.async.commit_group"] = {commit_copies, 0};
  table["cp.async.wait_group"] = {wait_for_copies, 1};
}

}  // namespace ak::ptx
