// What the machine reports: each kind of error once for every pair of lines of the program, with the first place and the number of times.
#pragma once

#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <tuple>

namespace ak::ptx {

// A line of the PTX and the thread that ran it; line 0: none.
struct Place {
  int line = 0;
  int thread = 0;
};

class Findings {
 public:
  int64_t program = 0;  // the one that is running: x + y * grid.x + z * grid.x * grid.y

  // `address`: where in its memory, in bytes from the start.
  void add(const char* kind, Place here, int64_t address = 0, Place other = {}) {
    Finding& finding = found_[{kind, here.line, other.line}];
    if (finding.count++ == 0) finding = {here.thread, other.thread, program, address, 1};
  }
  void clear() { found_.clear(); }

  // A row for each: kind, line, other line, thread, other thread, program, address, count, with tabs between them.
  std::string text() const {
    std::ostringstream rows;
    for (const auto& [key, finding] : found_) {
      const auto& [kind, line, other_line] = key;
      rows << kind << '\t' << line << '\t' << other_line << '\t' << finding.thread << '\t' << finding.other_thread << '\t'
           << finding.program << '\t' << finding.address << '\t' << finding.count << '\n';
    }
    return rows.str();
  }

 private:
  struct Finding {
    int thread, other_thread;
    int64_t program, address;
    uint64_t count;
  };
  std::map<std::tuple<std::string, int, int>, Finding> found_;
};

}  // namespace ak::ptx
