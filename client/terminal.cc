#include "client/terminal.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/json.h"

namespace babai::client {
namespace {

constexpr int kBarWidth = 24;

std::string Bar(double fraction) {
  const int full = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * kBarWidth);
  return absl::StrCat("[", std::string(full, '#'), std::string(kBarWidth - full, '.'), "]");
}

size_t TerminalWidth() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 100;
}

sigset_t Interrupt() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

std::string ClockText(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 1e9)));
  if (s < 3600) return absl::StrFormat("%d:%02d", s / 60, s % 60);
  return absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
}

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (open_) std::fputc('\n', stderr);
}

void ProgressLine::Show(const v1::QuantizeMetadata& m) {
  std::string text = m.phase().empty() ? StateName(m.state()) : m.phase();
  if (m.blocks() > 0) absl::StrAppend(&text, "  block ", m.block(), "/", m.blocks());
  absl::StrAppend(&text, "  ", ClockText(Seconds(m.elapsed())));
  if (m.has_eta()) absl::StrAppend(&text, "  ETA ", ClockText(Seconds(m.eta())));
  if (!m.worst_linear().empty()) {
    absl::StrAppendFormat(&text, "  worst %s %.3f", m.worst_linear(), m.worst_relative_error());
  }
  const int twentieth = static_cast<int>(m.fraction() * 20);
  Draw(m.fraction(), text, absl::StrCat(StateName(m.state()), " ", m.block(), " ", twentieth));
}

void ProgressLine::Show(const v1::EvaluateMetadata& m) {
  const std::string text = absl::StrCat("evaluating  ", ClockText(Seconds(m.elapsed())));
  Draw(m.fraction(), text, absl::StrCat(StateName(m.state()), static_cast<int>(m.fraction() * 10)));
}

void ProgressLine::Draw(double fraction, const std::string& text, const std::string& milestone) {
  const std::string percent = absl::StrFormat("%3d%%", static_cast<int>(fraction * 100));
  if (!terminal_) {
    if (std::exchange(last_milestone_, milestone) == milestone) return;
    std::fprintf(stderr, "%s  %s\n", percent.c_str(), text.c_str());
    return;
  }
  std::string line = absl::StrCat(Bar(fraction), " ", percent, "  ", text);
  line.resize(std::min(line.size(), TerminalWidth() - 1));
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
  open_ = true;
}

void ProgressLine::Say(const std::string& text) {
  std::fprintf(stderr, "%s%s\n", open_ ? "\r\033[K" : "", text.c_str());
  open_ = false;
}

Interrupts::Interrupts() {
  const sigset_t set = Interrupt();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Run(); });
}

Interrupts::~Interrupts() {
  stopping_ = true;
  thread_.join();
}

void Interrupts::Handle(std::function<void(int)> handler) {
  std::lock_guard lock(mutex_);
  handler_ = std::move(handler);
  count_ = 0;
}

void Interrupts::Run() {
  const sigset_t set = Interrupt();
  const timespec poll{0, 100'000'000};
  while (!stopping_) {
    if (sigtimedwait(&set, nullptr, &poll) != SIGINT) continue;
    std::lock_guard lock(mutex_);
    if (handler_) {
      handler_(++count_);
    } else {
      pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
      raise(SIGINT);
    }
  }
}

}  // namespace babai::client
