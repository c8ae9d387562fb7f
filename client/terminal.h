// What the command line shows while it waits, and Ctrl-C.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "babai/v1/evaluation.pb.h"
#include "babai/v1/quantization.pb.h"

namespace babai::client {

// Progress on stderr: one line that redraws itself on a terminal, a line a change elsewhere.
class ProgressLine {
 public:
  ProgressLine();   // looks at stderr
  ~ProgressLine();  // ends the line

  void Show(const v1::QuantizeMetadata& metadata);
  void Show(const v1::EvaluateMetadata& metadata);
  // Text of its own line, above the bar.
  void Say(const std::string& text);

 private:
  void Draw(double fraction, const std::string& text, const std::string& milestone);

  const bool terminal_;
  bool open_ = false;           // the bar is on the cursor's line
  std::string last_milestone_;  // elsewhere: printed when it changes
};

// "1:04", "2:03:00"
std::string ClockText(double seconds);

// Ctrl-C. Make one before any other thread is started; it lives until the process ends.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;

  // From now on Ctrl-C calls `handler`, with how often it came, on a thread of its own. Null:
  // Ctrl-C ends the process, as ever.
  void Handle(std::function<void(int count)> handler);

 private:
  void Run();

  std::mutex mutex_;
  std::function<void(int)> handler_;
  int count_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace babai::client
