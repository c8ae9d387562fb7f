#include "server/rpc/change_hub.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace babai {

ChangeHub::ChangeHub(Clock::duration heartbeat)
    : heartbeat_(heartbeat), thread_([this] { Run(); }) {}

ChangeHub::~ChangeHub() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void ChangeHub::Subscribe(std::string_view id, std::weak_ptr<ChangeListener> listener) {
  {
    std::lock_guard lock(mutex_);
    fresh_.push_back({std::string(id), std::move(listener), Clock::now()});
  }
  wake_.notify_all();
}

void ChangeHub::Notify(std::string_view id) {
  {
    std::lock_guard lock(mutex_);
    changed_.emplace(id);
  }
  wake_.notify_all();
}

void ChangeHub::Run() {
  while (true) {
    std::set<std::string, std::less<>> changed;
    {
      const Clock::time_point next = NextWake();
      std::unique_lock lock(mutex_);
      wake_.wait_until(lock, next,
                       [this] { return stopping_ || !changed_.empty() || !fresh_.empty(); });
      if (stopping_) return;
      changed.swap(changed_);
      std::move(fresh_.begin(), fresh_.end(), std::back_inserter(entries_));
      fresh_.clear();
    }
    const Clock::time_point now = Clock::now();
    for (Entry& entry : entries_) entry.changed |= changed.contains(entry.id);
    std::erase_if(entries_, [&](Entry& entry) { return !Serve(entry, now); });
  }
}

// False: forget it.
bool ChangeHub::Serve(Entry& entry, Clock::time_point now) {
  const std::shared_ptr<ChangeListener> listener = entry.listener.lock();
  if (listener == nullptr) return false;
  if (entry.changed || now >= listener->wake_at()) {
    entry.changed = false;
    entry.last_call = now;
    return listener->OnChange();
  }
  if (now < entry.last_call + heartbeat_) return true;
  entry.last_call = now;
  return listener->OnQuiet();
}

ChangeHub::Clock::time_point ChangeHub::NextWake() {
  Clock::time_point next = Clock::now() + heartbeat_;
  for (const Entry& entry : entries_) {
    next = std::min(next, entry.last_call + heartbeat_);
    if (const auto listener = entry.listener.lock()) next = std::min(next, listener->wake_at());
  }
  return next;
}

}  // namespace babai
