// What the command line reads and prints, without a server.
#include "client/client.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "client/json.h"
#include "client/output.h"
#include "client/refusal.h"
#include "client/terminal.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"

namespace babai::client {
namespace {

using ::testing::ElementsAre;

grpc::Status RefusedByServer() {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  info.set_reason("QUEUE_FULL");
  info.set_domain("babai");
  (*info.mutable_metadata())["field"] = "model";
  details.add_details()->PackFrom(info);
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(2);
  details.add_details()->PackFrom(retry);
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", details.SerializeAsString()};
}

TEST(RefusalTest, NamesCodeReasonAndField) {
  const absl::Status status = FromGrpc(RefusedByServer());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  const Refusal refusal = RefusalOf(status);
  EXPECT_EQ(refusal.reason, "QUEUE_FULL");
  EXPECT_EQ(refusal.field, "model");
  EXPECT_EQ(refusal.retry_seconds, 2);
  EXPECT_EQ(ToText(status),
            "RESOURCE_EXHAUSTED (QUEUE_FULL, model): the queue is full [retry after 2 s]");
}

TEST(RefusalTest, WorksWithoutDetails) {
  EXPECT_EQ(ToText(FromGrpc({grpc::StatusCode::UNAVAILABLE, "no server"})),
            "UNAVAILABLE: no server");
  EXPECT_EQ(ToText(FromGrpc({grpc::StatusCode::INTERNAL, "x", "not a proto \xff"})), "INTERNAL: x");
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

TEST(ClientTest, NoServerIsUnavailable) {
  Client client("127.0.0.1:1");
  EXPECT_EQ(client.GetServerInfo().status().code(), absl::StatusCode::kUnavailable);
}

TEST(OutputTest, IdsComeAsTheyAreOrFromAFile) {
  EXPECT_THAT(*ReadIds("1,2, 3 4"), ElementsAre(1, 2, 3, 4));
  const auto path =
      std::filesystem::temp_directory_path() / ("babai-ids-" + std::to_string(::getpid()) + ".txt");
  std::ofstream(path) << "[5, 6,\n7]";
  EXPECT_THAT(*ReadIds(path.string()), ElementsAre(5, 6, 7));
  std::ofstream(path) << "5 six";
  EXPECT_EQ(ReadIds(path.string()).status().code(), absl::StatusCode::kInvalidArgument);
  std::filesystem::remove(path);
  EXPECT_EQ(ReadIds(path.string()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ReadIds("99999999999").ok());
  EXPECT_FALSE(ReadText("/").ok());
}

TEST(JsonTest, GenerateHasTheFieldsOfTheContract) {
  v1::GenerateResult result;
  result.set_text("hé");
  result.add_token_ids(7);
  result.add_token_ids(8);
  auto& finish = *result.mutable_finish();
  finish.set_reason(v1::FINISH_REASON_STOP_STRING);
  finish.mutable_usage()->set_prompt_tokens(3);
  finish.mutable_usage()->set_completion_tokens(11);
  finish.mutable_timings()->mutable_decode()->set_seconds(2);
  const Json json = ToJson(result);
  EXPECT_EQ(json["text"], "hé");
  EXPECT_EQ(json["token_ids"], Json::parse("[7,8]"));
  EXPECT_EQ(json["finish_reason"], "stop_string");
  EXPECT_EQ(json["prompt_tokens"], 3);
  EXPECT_EQ(json["completion_tokens"], 11);
  EXPECT_EQ(json["tokens_per_second"], 5.0);  // ten tokens after the first in two seconds
}

TEST(JsonTest, EvaluateHasTheFieldsOfTheContract) {
  v1::EvaluateResult result;
  result.set_perplexity(12.5);
  result.set_tokens(100);
  Json json = ToJson(result);
  EXPECT_EQ(json["perplexity"], 12.5);
  EXPECT_EQ(json["tokens"], 100);
  EXPECT_TRUE(json["mean_kl"].is_null());
  result.mutable_comparison()->set_mean_kl(0.25);
  result.mutable_comparison()->set_top1_agreement(0.5);
  json = ToJson(result);
  EXPECT_EQ(json["mean_kl"], 0.25);
  EXPECT_EQ(json["top1_agreement"], 0.5);
}

TEST(JsonTest, ModelAndJobHaveTheFieldsOfTheContract) {
  v1::Model model;
  model.set_name("m");
  model.set_state(v1::Model::STATE_LOADED);
  model.mutable_recipe()->set_preset("babai");
  model.set_bits_per_weight(4.25);
  model.set_packed_bytes(1000);
  model.add_linears()->set_name("blocks.0.q.weight");
  const Json json = ToJson(model, /*full=*/true);
  for (const char* field : {"name", "state", "recipe", "bits_per_weight", "packed_bytes"}) {
    EXPECT_TRUE(json.contains(field)) << field;
  }
  EXPECT_EQ(json["linears"][0]["name"], "blocks.0.q.weight");
  EXPECT_TRUE(json["linears"][0].contains("relative_error"));

  Operation operation;
  operation.set_name("operations/job-1");
  v1::QuantizeMetadata metadata;
  metadata.set_state(v1::QuantizeMetadata::STATE_QUANTIZING);
  metadata.set_fraction(0.5);
  metadata.set_model("m");
  operation.mutable_metadata()->PackFrom(metadata);
  const Json job = ToJson(operation);
  EXPECT_EQ(job["id"], "job-1");
  EXPECT_EQ(job["state"], "QUANTIZING");
  EXPECT_EQ(job["progress"], 0.5);
  EXPECT_EQ(job["model"], "m");
}

TEST(TerminalTest, Clock) {
  EXPECT_EQ(ClockText(64), "1:04");
  EXPECT_EQ(ClockText(7384.4), "2:03:04");
  EXPECT_EQ(ClockText(-5), "0:00");
  EXPECT_EQ(BytesText(81'340'000), "81.3 MB");
}

// The command itself: exit codes and what goes to which stream.
int ExitCodeOf(const std::string& arguments) {
  const std::string command = std::string(BABAI_COMMAND) + " " + arguments + " >/dev/null 2>&1";
  return WEXITSTATUS(std::system(command.c_str()));
}

TEST(CommandTest, ExitCodes) {
  EXPECT_EQ(ExitCodeOf("--help"), 0);
  EXPECT_EQ(ExitCodeOf("quantize --help"), 0);
  EXPECT_EQ(ExitCodeOf(""), 2);
  EXPECT_EQ(ExitCodeOf("no_such_verb"), 2);
  EXPECT_EQ(ExitCodeOf("quantize"), 2);
  EXPECT_EQ(ExitCodeOf("generate m"), 2);
  EXPECT_EQ(ExitCodeOf("generate m hello --max_tokens many"), 2);
  EXPECT_EQ(ExitCodeOf("generate m hello --ids 1,2"), 2);
  EXPECT_EQ(ExitCodeOf("evaluate m"), 2);
  EXPECT_EQ(ExitCodeOf("jobs"), 2);
  EXPECT_EQ(ExitCodeOf("--server 127.0.0.1:1 info"), 1);
  EXPECT_EQ(ExitCodeOf("--server 127.0.0.1:1 --json models list"), 1);
  EXPECT_EQ(ExitCodeOf("--server 127.0.0.1:1 tokenize m --text /no/such/file"), 1);
}

}  // namespace
}  // namespace babai::client
