// The whole server, in a process of its own, whose device fails in the middle of an answer.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "babai/v1/generation.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/sync_stream.h"
#include "gtest/gtest.h"
#include "server/reason/reason.h"
#include "server/server.h"
#include "server/store/catalog.h"
#include "tests/engine/tiny_packed.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

// A CPU runner whose device fails at the `steps`th step, for good.
class FailingRunner final : public Runner {
 public:
  FailingRunner(std::unique_ptr<Runner> runner, int steps)
      : runner_(std::move(runner)), steps_(steps) {}
  const ModelConfig& config() const override { return runner_->config(); }
  const RunnerOptions& options() const override { return runner_->options(); }
  int64_t weight_bytes() const override { return runner_->weight_bytes(); }
  int64_t kv_bytes() const override { return runner_->kv_bytes(); }
  void CopyKvBlock(int32_t from, int32_t to) override { runner_->CopyKvBlock(from, to); }
  absl::Status Step(const StepBatch& batch, float* logits) override {
    if (--steps_ > 0) return runner_->Step(batch, logits);
    return Refuse(absl::StatusCode::kUnavailable, reason::kDeviceLost, "", "it fell off the bus");
  }

 private:
  const std::unique_ptr<Runner> runner_;
  int steps_;
};

int Serve(const std::string& data_dir, int steps) {
  ServerFlags flags;
  flags.listen = "127.0.0.1:0", flags.metrics_listen = "";
  flags.data_dir = data_dir, flags.device = "cpu", flags.threads = 1;
  ThreadPool pool(1);
  ServerParts parts;
  parts.make_runner = [&](std::shared_ptr<const PackedModel> model,
                          const RunnerOptions& options) -> absl::StatusOr<std::unique_ptr<Runner>> {
    absl::StatusOr<std::unique_ptr<Runner>> runner = MakeCpuRunner(std::move(model), options, pool);
    if (!runner.ok()) return runner;
    return std::make_unique<FailingRunner>(*std::move(runner), steps);
  };
  return RunServer(flags, parts);
}

// The server as a child; its address is what it prints.
class Child {
 public:
  Child(const std::string& data_dir, int steps) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      close(ends[0]), close(ends[1]);
      _exit(Serve(data_dir, steps));
    }
    close(ends[1]);
    FILE* out = fdopen(ends[0], "r");
    char line[256] = "";
    const char key[] = "ready listen=";
    if (std::fgets(line, sizeof(line), out) != nullptr && std::strstr(line, key) == line) {
      address_ = line + std::strlen(key);
      address_ = address_.substr(0, address_.find(' '));
    }
    std::fclose(out);
  }
  const std::string& address() const { return address_; }
  int ExitCode() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  std::string address_;
};

std::string ReasonOnTheWire(const grpc::Status& status) {
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  google::rpc::ErrorInfo info;
  for (const auto& detail : details.details()) detail.UnpackTo(&info);
  return info.reason();
}

v1::GenerateRequest Request() {
  v1::GenerateRequest request;
  request.set_model("tiny");
  for (const int32_t id : {5, 17, 40}) request.mutable_token_ids()->add_ids(id);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_stopping()->set_max_tokens(40);
  return request;
}

TEST(LostDeviceTest, StreamsEndHealthSaysSoAndTheProcessExits70) {
  TempDir temp;
  {
    const auto catalog = *Catalog::Open(temp.path() / "data");
    const auto checkpoint = OpenTiny(TinyModel(), temp.path() / "hf");
    PackTiny(*checkpoint, 4, catalog->NewStagingDir("tiny"), catalog->ModelDir("tiny"));
  }
  constexpr int kSteps = 6;  // the prompt's, then a token each
  Child child((temp.path() / "data").string(), kSteps);
  ASSERT_NE(child.address(), "");
  const auto channel = grpc::CreateChannel(child.address(), grpc::InsecureChannelCredentials());
  using grpc::health::v1::HealthCheckResponse;
  // The health service by its path alone: that is how a prober of another language calls it.
  grpc::ClientContext watching;
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Watch",
                                         grpc::internal::RpcMethod::SERVER_STREAMING);
  const std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> watch(
      grpc::internal::ClientReaderFactory<HealthCheckResponse>::Create(
          channel.get(), method, &watching, grpc::health::v1::HealthCheckRequest()));
  HealthCheckResponse state;
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_EQ(state.status(), HealthCheckResponse::SERVING);

  const auto stub = v1::GenerationService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const auto stream = stub->Generate(&context, Request());
  int tokens = 0;
  for (v1::GenerateResponse event; stream->Read(&event);) {
    tokens += event.has_delta() ? event.delta().token_ids_size() : 0;
  }
  const grpc::Status ended = stream->Finish();
  EXPECT_EQ(ended.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOnTheWire(ended), reason::kDeviceLost);
  EXPECT_EQ(tokens, kSteps - 1);

  ASSERT_TRUE(watch->Read(&state));
  EXPECT_EQ(state.status(), HealthCheckResponse::NOT_SERVING);
  watching.TryCancel();
  EXPECT_EQ(child.ExitCode(), kExitDeviceLost);
}

}  // namespace
}  // namespace babai
