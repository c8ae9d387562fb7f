#include "server/http/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/http/scrape.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class CountingEngine final : public Engine {
 public:
  std::vector<EngineStats> stats;

  absl::Status Load(std::string_view) override { return absl::OkStatus(); }
  absl::Status Unload(std::string_view) override { return absl::OkStatus(); }
  absl::Status SetPinned(std::string_view, bool) override { return absl::OkStatus(); }
  ModelStatus Status(std::string_view) const override { return {}; }
  std::vector<ModelStatus> Loaded() const override { return {}; }
  absl::StatusOr<std::shared_ptr<const Tokenizer>> TokenizerOf(std::string_view) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<ModelConfig> ConfigOf(std::string_view) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::shared_ptr<GenerateHandle>> Generate(GenerateRequest,
                                                           std::shared_ptr<GenerateSink>) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<EvaluateResult> Evaluate(const EvaluateRequest&,
                                          const std::function<void(double)>&,
                                          const std::function<bool()>&) override {
    return absl::UnimplementedError("");
  }
  std::vector<EngineStats> Stats() const override { return stats; }
  void Drain(absl::Time) override {}
};

std::string Fetch(const std::string& address, const std::string& path) {
  const size_t colon = address.rfind(':');
  const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  EXPECT_EQ(connect(socket_fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
  EXPECT_EQ(write(socket_fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string page(1 << 20, '\0');
  size_t size = 0;
  for (ssize_t n; (n = read(socket_fd, page.data() + size, page.size() - size)) > 0;) {
    size += static_cast<size_t>(n);
  }
  close(socket_fd);
  page.resize(size);
  return page;
}

TEST(MetricsTest, EveryReportedFigureIsOnThePage) {
  Metrics metrics("1.2.3");
  metrics.OnFirstToken("m", absl::Milliseconds(20), absl::Milliseconds(1));
  metrics.OnInterToken("m", absl::Microseconds(700));
  Finish finish;
  finish.reason = FinishReason::kLength;
  metrics.OnFinished("m", finish, absl::Seconds(2));
  finish.status = Refuse(absl::StatusCode::kResourceExhausted, reason::kSlowReader, "", "slow");
  metrics.OnFinished("m", finish, absl::Seconds(2));
  metrics.OnLoaded("m", absl::Seconds(1), true);
  metrics.OnCall("GenerationService/Generate", absl::StatusCode::kOk, absl::Seconds(2));
  LinearReport linear;
  linear.relative_error = 0.04;
  linear.bits_per_weight = 3.25;
  linear.clip_rate = 0.004;
  metrics.OnLinear(linear, absl::Milliseconds(30));
  const std::string page = metrics.Page();
  for (const char* line :
       {"babai_build_info{version=\"1.2.3\"} 1",
        "babai_time_to_first_token_seconds_count{model_name=\"m\"} 1",
        "babai_time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.025\"} 1",
        "babai_request_queue_time_seconds_count{model_name=\"m\"} 1",
        "babai_inter_token_latency_seconds_bucket{model_name=\"m\",le=\"0.0005\"} 0",
        "babai_inter_token_latency_seconds_bucket{model_name=\"m\",le=\"0.001\"} 1",
        "babai_e2e_request_latency_seconds_sum{model_name=\"m\"} 4",
        "babai_request_success_total{finished_reason=\"length\",model_name=\"m\"} 1",
        "babai_request_failure_total{model_name=\"m\",reason=\"SLOW_READER\"} 1",
        "babai_model_load_duration_seconds_count{model_name=\"m\"} 1",
        "babai_grpc_requests_total{code=\"OK\",method=\"GenerationService/Generate\"} 1",
        "babai_quantize_layer_duration_seconds_count{phase=\"solve\"} 1",
        "babai_quantize_layer_relative_error_bucket{le=\"0.05\"} 1",
        "babai_quantize_layer_bits_per_weight_bucket{le=\"3.5\"} 1",
        "babai_quantize_layer_clip_ratio_bucket{le=\"0.003\"} 0",
        "babai_quantize_jobs{state=\"QUEUED\"} 0"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
}

TEST(MetricsTest, JobsMoveThroughTheirStates) {
  Metrics metrics("1");
  Job job;
  job.id = "job-1";
  metrics.OnJob(job);
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_quantize_jobs{state=\"QUEUED\"} 1"));
  job.progress.state = JobState::kQuantizing;
  metrics.OnJob(job);
  metrics.OnJob(job);
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_quantize_jobs{state=\"QUEUED\"} 0"));
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_quantize_jobs{state=\"QUANTIZING\"} 1"));
  job.progress.state = JobState::kReady;
  metrics.OnJob(job);
  metrics.OnJob(job);  // told twice, counted once
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_quantize_jobs{state=\"QUANTIZING\"} 0"));
  EXPECT_THAT(metrics.Page(),
              HasSubstr("babai_quantize_jobs_total{reason=\"\",result=\"ready\"} 1"));
}

TEST(MetricsTest, CountersDoNotFallWhenAModelIsLoadedAgain) {
  Metrics metrics("1");
  CountingEngine engine;
  engine.stats = {{.model = "m", .kv_blocks_used = 1, .kv_blocks = 4, .generation_tokens = 10}};
  metrics.Attach(&engine, nullptr);
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_generation_tokens_total{model_name=\"m\"} 10"));
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_kv_cache_usage_ratio{model_name=\"m\"} 0.25"));
  engine.stats.front().generation_tokens = 3;
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_generation_tokens_total{model_name=\"m\"} 13"));
  engine.stats.clear();
  EXPECT_THAT(metrics.Page(), HasSubstr("babai_generation_tokens_total{model_name=\"m\"} 13"));
  metrics.Detach();
}

TEST(MetricsTest, SeriesAreBounded) {
  Metrics metrics("1");
  for (int i = 0; i < 300; ++i) {
    metrics.OnInterToken(absl::StrCat("model", i), absl::Milliseconds(1));
  }
  const std::string page = metrics.Page();
  EXPECT_THAT(page,
              HasSubstr("babai_inter_token_latency_seconds_count{model_name=\"model199\"} 1"));
  EXPECT_THAT(page, Not(HasSubstr("model_name=\"model200\"")));
  EXPECT_THAT(page, HasSubstr("babai_inter_token_latency_seconds_count{model_name=\"other\"} 100"));
}

TEST(MetricsTest, ServesThePageOnAnyFreePortAndRefusesATakenOne) {
  Metrics metrics("1");
  const auto address = metrics.Serve("127.0.0.1:0");
  ASSERT_TRUE(address.ok()) << address.status();
  const std::string page = Fetch(*address, "/metrics");
  EXPECT_THAT(page, HasSubstr("200 OK"));
  EXPECT_THAT(page, HasSubstr("babai_build_info"));
  EXPECT_THAT(Fetch(*address, "/etc/passwd"), Not(HasSubstr("root:")));
  Metrics second("1");
  EXPECT_EQ(second.Serve(*address).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(second.Serve("nonsense").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace babai
