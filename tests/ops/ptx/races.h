// Who last read and wrote each cell of a memory, and the races that this shows: between warps of a program, two accesses without a barrier
// between them of which one writes; between programs, which nothing orders, any two of which one writes. A write of what is there already
// is none: layouts that repeat a value have several threads write it. Nor is it reported that two warps write one shared cell, or that one
// writes a global cell that another has read: replicated stores and loads do so with values that nobody uses. Where somebody does, the
// schedules differ in their results.
#pragma once

#include <cstdint>
#include <vector>

#include "findings.h"

namespace ak::ptx {

enum class Space { shared, global };

class Races {
 public:
  // `now` counts barriers and programs: two accesses of one program are ordered where it differs.
  Races(Space space, const uint32_t& now, Findings& findings) : space_(space), now_(now), findings_(findings) {}

  // A cell is the program's smallest access. No cells: nothing is watched.
  void start(uint64_t bytes, int cell_bytes) {
    cell_bytes_ = cell_bytes;
    cells_.assign(bytes / cell_bytes + 1, Cell());
  }
  void stop() { cells_.clear(); }

  void read(Place here, int64_t address, int bytes) {
    each(address, bytes, [&](Cell& cell) { read(cell, here, address); });
  }
  void write(Place here, int64_t address, int bytes, bool same) {
    each(address, bytes, [&](Cell& cell) { write(cell, here, address, same); });
  }
  // From the start of an asynchronous copy until it has been waited for.
  void set_in_flight(int64_t address, int bytes, bool in_flight) {
    each(address, bytes, [&](Cell& cell) { cell.in_flight = in_flight; });
  }

 private:
  static constexpr int64_t kNobody = -1, kSeveral = -2;
  struct Access {
    uint32_t when = 0;
    Place place;
    int64_t program = kNobody;
  };
  struct Cell {
    Access written, read;
    bool read_by_several_warps = false;
    bool in_flight = false;
  };

  template <class Visit>
  void each(int64_t address, int bytes, const Visit& visit) {
    if (cells_.empty()) return;
    for (int64_t i = address / cell_bytes_; i <= (address + bytes - 1) / cell_bytes_; ++i) visit(cells_[i]);
  }
  static bool other_warp(Place a, Place b) { return a.thread / 32 != b.thread / 32; }
  bool other_program(const Access& access) const { return access.program != kNobody && access.program != findings_.program; }

  void read(Cell& cell, Place here, int64_t address) {
    if (cell.in_flight) findings_.add("a read of shared memory that cp.async has not been waited for", here, address, cell.written.place);
    if (cell.written.when == now_ && other_warp(here, cell.written.place))
      findings_.add("a race: a read of what another warp writes, without a barrier between them", here, address, cell.written.place);
    if (space_ == Space::global) {
      if (other_program(cell.written))
        findings_.add("a race: a read of what another program writes", here, address, cell.written.place);
      cell.read.program = other_program(cell.read) ? kSeveral : findings_.program;
    }
    const bool first = cell.read.when != now_;
    cell.read_by_several_warps = !first && (cell.read_by_several_warps || other_warp(here, cell.read.place));
    cell.read.when = now_;
    cell.read.place = here;
  }
  void write(Cell& cell, Place here, int64_t address, bool same) {
    if (cell.in_flight) findings_.add("a write to shared memory that cp.async has not been waited for", here, address, cell.written.place);
    const bool read_now = cell.read.when == now_ && (cell.read_by_several_warps || other_warp(here, cell.read.place));
    if (!same && space_ == Space::shared && read_now)
      findings_.add("a race: a write of what another warp reads, without a barrier between them", here, address, cell.read.place);
    if (!same && space_ == Space::global) {
      if (cell.written.when == now_ && other_warp(here, cell.written.place))
        findings_.add("a race: two warps write different values, without a barrier between them", here, address, cell.written.place);
      if (other_program(cell.written))
        findings_.add("a race: two programs write different values", here, address, cell.written.place);
      if (other_program(cell.read)) findings_.add("a race: a write of what another program reads", here, address, cell.read.place);
    }
    cell.written = {now_, here, findings_.program};
  }

  const Space space_;
  const uint32_t& now_;
  Findings& findings_;
  int cell_bytes_ = 1;
  std::vector<Cell> cells_;
};

}  // namespace ak::ptx
