// Tells watchers that an operation changed, without a thread a watcher.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace babai {

// Called on the hub's thread, never twice at once; must not block for long and must not throw.
class ChangeListener {
 public:
  virtual ~ChangeListener() = default;
  // Something may have changed; false = do not call again.
  virtual bool OnChange() = 0;
  // Nothing was reported for a heartbeat interval; false = do not call again.
  virtual bool OnQuiet() = 0;
  // When OnChange() is wanted without a change (a timeout); max() = never.
  virtual std::chrono::steady_clock::time_point wake_at() const {
    return std::chrono::steady_clock::time_point::max();
  }
};

// Thread-safe.
class ChangeHub {
 public:
  using Clock = std::chrono::steady_clock;

  explicit ChangeHub(Clock::duration heartbeat);
  ~ChangeHub();
  ChangeHub(const ChangeHub&) = delete;

  // OnChange() follows at once, then after every Notify(id). The hub keeps no listener alive: one
  // that is gone is forgotten.
  void Subscribe(std::string_view id, std::weak_ptr<ChangeListener> listener);
  // Cheap; may be called from any thread.
  void Notify(std::string_view id);

 private:
  struct Entry {
    std::string id;
    std::weak_ptr<ChangeListener> listener;
    Clock::time_point last_call;
    bool changed = true;
  };

  void Run();
  bool Serve(Entry& entry, Clock::time_point now);
  Clock::time_point NextWake();

  const Clock::duration heartbeat_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::set<std::string, std::less<>> changed_;
  std::vector<Entry> fresh_;
  bool stopping_ = false;
  std::vector<Entry> entries_;  // the thread's own
  std::thread thread_;
};

}  // namespace babai
