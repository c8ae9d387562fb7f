// How evenly do tokens reach a client, and how far does a job beside them change that?
//
//   serve_latency --server 127.0.0.1:50051 --model NAME [--streams 4] [--tokens 256] [--seconds 20]
//                 [--temperature 1]
//
// Keeps so many answers under way for so long, each of so many tokens, and prints medians and
// percentiles of the gaps between one token's arrival and the next of its stream, as a client sees
// them. Run it beside an idle server, then while a job runs; the ratio of the p99s is the answer.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"

namespace babai {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string server = "127.0.0.1:50051", model;
  int streams = 4, tokens = 256, seconds = 20;
  double temperature = 1;
};

Options Parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const char* value = argv[i + 1];
    if (flag == "--server") {
      o.server = value;
    } else if (flag == "--model") {
      o.model = value;
    } else if (flag == "--streams") {
      o.streams = std::atoi(value);
    } else if (flag == "--tokens") {
      o.tokens = std::atoi(value);
    } else if (flag == "--seconds") {
      o.seconds = std::atoi(value);
    } else if (flag == "--temperature") {
      o.temperature = std::atof(value);
    } else {
      std::fprintf(stderr, "serve_latency: unknown %s; see the head of its source\n", argv[i]);
      std::exit(2);
    }
  }
  return o;
}

// Gaps in ms, of all streams.
class Gaps {
 public:
  void Add(const std::vector<double>& more) {
    std::lock_guard<std::mutex> lock(mutex_);
    all_.insert(all_.end(), more.begin(), more.end());
  }
  void Print(const Options& o, double seconds) {
    std::sort(all_.begin(), all_.end());
    if (all_.empty()) return;
    const auto at = [&](double share) {
      return all_[std::min(all_.size() - 1, static_cast<size_t>(share * all_.size()))];
    };
    std::printf(
        "%d streams, %zu gaps in %.1f s: %.0f tokens/s; gap ms p50 %.3f p90 %.3f p99 %.3f "
        "p99.9 %.3f most %.3f\n",
        o.streams, all_.size(), seconds, all_.size() / seconds, at(0.5), at(0.9), at(0.99),
        at(0.999), all_.back());
  }

 private:
  std::mutex mutex_;
  std::vector<double> all_;
};

void Stream(const Options& o, int index, Clock::time_point until, Gaps& gaps) {
  client::Client server(o.server);
  for (int round = 0; Clock::now() < until; ++round) {
    v1::GenerateRequest request;
    request.set_model(o.model);
    request.set_text("Once upon a time there was a lattice");
    request.mutable_sampling()->set_temperature(o.temperature);
    request.mutable_sampling()->set_seed(1000 * index + round);
    request.mutable_stopping()->set_ignore_eos(true);
    request.mutable_stopping()->set_max_tokens(o.tokens);
    std::vector<double> found;
    Clock::time_point last{};
    const absl::Status status = server.Generate(request, [&](const v1::GenerateResponse& event) {
      if (!event.has_delta()) return;
      const Clock::time_point now = Clock::now();
      if (last != Clock::time_point{}) {
        found.push_back(std::chrono::duration<double, std::milli>(now - last).count());
      }
      last = now;
    });
    if (!status.ok()) {
      std::fprintf(stderr, "serve_latency: %s\n", status.ToString().c_str());
      std::exit(1);
    }
    gaps.Add(found);
  }
}

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  Gaps gaps;
  const auto start = Clock::now();
  const auto until = start + std::chrono::seconds(o.seconds);
  std::vector<std::thread> threads;
  for (int i = 0; i < o.streams; ++i) {
    threads.emplace_back([&, i] { Stream(o, i, until, gaps); });
  }
  for (std::thread& thread : threads) thread.join();
  gaps.Print(o, std::chrono::duration<double>(Clock::now() - start).count());
  return 0;
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) { return babai::Main(argc, argv); }
