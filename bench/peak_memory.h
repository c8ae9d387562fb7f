// What this process has taken of the host's memory at most.
#pragma once

#include <fstream>
#include <string>

namespace babai {

// "VmHWM:    12345 kB" of /proc/self/status, in GB; 0 where there is no such file.
inline double PeakHostGb() {
  std::ifstream file("/proc/self/status");
  std::string key;
  while (file >> key) {
    double kb = 0;
    if (key == "VmHWM:" && file >> kb) return kb / 1e6;
  }
  return 0;
}

}  // namespace babai
